"""ray up on a simulated market: a rented head, a real job on spot boxes, an outbid, and nothing left after ray down."""

import subprocess
import time

import pytest
import yaml

from tests.cluster import e2e
from tests.cluster.e2e import DASHBOARD, cluster, took
from tests.conftest import PATIENCE

pytestmark = [pytest.mark.slow, e2e.NAMESPACES]


@pytest.fixture
def laptop(boxes, shared, tmp_path):
    box = boxes.laptop(tmp_path, shared)
    yield box
    box.close()


@pytest.mark.parametrize("market", ["vast", "runpod"])
def test_up_outbid_in_the_middle_the_same_bits_down(market, laptop, boxes, shared, undisturbed):
    options, expected = undisturbed
    config = shared / "cluster.yaml"
    empty = {"setup_commands": [], "head_setup_commands": [], "worker_setup_commands": []}
    told = cluster(market) | empty
    rung = {"market": market, "count": 0, "spot": False, "max_usd_per_hour": 0.2}
    told["available_node_types"]["head"]["node_config"] = {"ladder": [rung]}
    config.write_text(yaml.safe_dump(told))
    began, tunnel = time.time(), None
    try:
        up = laptop.run("ray", "up", "-y", "--no-config-cache", config)
        assert up.returncode == 0, up.stdout + up.stderr
        took("ray up", began)
        forever = f"while :; do ray dashboard {config}; done"
        tunnel = laptop.start("sh", "-c", forever, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        give_up = time.time() + PATIENCE
        while laptop.run("curl", "-sf", "-m", "3", f"{DASHBOARD}/api/version").returncode:
            assert time.time() < give_up
            time.sleep(0.5)
        assert e2e.outbid_in_the_middle(laptop, boxes, shared, options, f"e2e-{market}") == expected
        boxes.wait(lambda state: len(state["rentals"]) == 1)  # idle: the head alone
    finally:
        if tunnel:
            tunnel.terminate()
        began = time.time()
        down = laptop.run("ray", "down", "-y", config)
        took("ray down", began)
    assert down.returncode == 0, down.stdout + down.stderr
    assert boxes.state()["rentals"] == []
