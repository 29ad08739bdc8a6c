"""ray up on the simulated markets: a rented head, a real job on spot boxes, an outbid worker, one ledger, and nothing left
after ray down."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import yaml

from cluster.money.ledger import UNLISTED_S, Ledger
from cluster.node.autoscaler_config import CODE
from tests.cluster import e2e
from tests.cluster.e2e import DASHBOARD, cluster, took
from tests.cluster.test_ledger import RENTAL
from tests.conftest import PATIENCE

pytestmark = [pytest.mark.slow, e2e.NAMESPACES]


@pytest.fixture
def laptop(boxes, shared, tmp_path):
    box = boxes.laptop(tmp_path, shared)
    yield box
    box.close()


def test_up_outbid_midway_same_bits_down(laptop, boxes, shared, undisturbed, monkeypatch):
    """A head from RunPod rents its workers on Vast, for a cluster with earlier rentals."""
    options, expected = undisturbed
    name, config = "e2e-vast", shared / "cluster.yaml"
    empty = {"setup_commands": [], "head_setup_commands": [], "worker_setup_commands": []}
    told = cluster("vast") | empty
    told["provider"]["markets"] = ["runpod", "vast"]
    rung = {"market": "runpod", "count": 0, "spot": False, "max_usd_per_hour": 0.2}
    told["available_node_types"]["head"]["node_config"] = {"ladder": [rung]}
    config.write_text(yaml.safe_dump(told))
    began, tunnel = time.time(), None
    had = earlier_life(laptop, name, monkeypatch)
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
        assert e2e.lost_in_the_middle(laptop, boxes, shared, options, name, "outbid") == expected
        state = boxes.wait(lambda state: len(state["rentals"]) == 1)  # idle: only the head
        head = f"runpod-{state['rentals'][0]['id']}"
        shown = laptop.run(sys.executable, "-m", "cluster", "status").stdout
        assert "Ray joined" in shown and f"{name}: $" in shown and "can't be reached" not in shown, shown
        here = costs(laptop.run(sys.executable, "-m", "cluster", "cost", name, "--json"))
        there = f"cd {CODE} && python3 -m cluster cost {name} --json"
        there = costs(laptop.run(sys.executable, "-m", "cluster", "ssh", head, there))
        assert here["incomplete"] == there["incomplete"] == []
        seconds = there["asked"] - here["asked"]
        assert there["usd"] - here["usd"] == pytest.approx(seconds * here["usd_per_hour"] / 3600, abs=1e-4)
        assert [n["node"] for n in here["nodes"]] == [n["node"] for n in there["nodes"]] and len(here["nodes"]) >= 5
        assert [n["usd"] for n in there["nodes"] if n["node"] == "vast-1"] == [pytest.approx(had)]
        written = (laptop.home / ".shoestring" / name / "others" / f"{head}.jsonl").read_text().splitlines()
        states = [(e["key"], e["fields"]["state"]) for e in map(json.loads, written) if e.get("kind") == "boot"]
        # `status` shows each worker's boot like this.
        assert len({node for node, state in states if state == "up-to-date"}) >= 3
        (job,) = here["jobs"]
        assert job["stage"] == "sft" and job["step"] == 60
    finally:
        if tunnel:
            tunnel.terminate()
        began = time.time()
        down = laptop.run("ray", "down", "-y", config)
        took("ray down", began)
    assert down.returncode == 0, down.stdout + down.stderr
    assert boxes.state()["rentals"] == []
    after = costs(laptop.run(sys.executable, "-m", "cluster", "cost", name, "--json"))
    assert after["usd_per_hour"] == 0 and after["incomplete"] == [], down.stderr
    billed = {f"{r['market']}-{r['id']}": r["usd"] for r in boxes.bill()["rentals"]}
    nodes = [n for n in after["nodes"] if n["node"] != "vast-1"]
    assert {n["node"] for n in nodes} <= billed.keys()
    for node in nodes:  # the outbid one ended between two polls
        assert -1e-4 < node["usd"] - billed[node["node"]] < 0.005, node
    assert after["usd"] >= here["usd"]


def earlier_life(laptop, cluster: str, monkeypatch) -> float:
    """Adds half an hour of one box to the cluster's ledger on the laptop; returns its cost."""
    began = time.time() - 7200
    with monkeypatch.context() as m:
        m.setenv("SHOESTRING_STATE", str(laptop.home / ".shoestring"))
        ledger = Ledger(cluster)
        box = replace(RENTAL, label=f"shoestring/{cluster};k=worker", created=began, started=began)
        ledger.observe("vast", [box], at=began)
        ledger.observe("vast", [box], at=began + 1800)
        ledger.observe("vast", [], at=began + 1801 + UNLISTED_S)
        (entry,) = ledger.entries()
        assert not entry.living
        return ledger.spent(time.time())


def costs(said: subprocess.CompletedProcess) -> dict:
    assert said.returncode == 0, said.stdout + said.stderr
    return json.loads(said.stdout)[0]
