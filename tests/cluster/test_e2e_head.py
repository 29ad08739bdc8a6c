"""A head on a laptop behind a router, and boxes that share no network with it or each other: a real job, a host that goes dark."""

import re
import subprocess
import sys
import time

import pytest
import yaml

from lib.run import Run
from tests.cluster import e2e
from tests.cluster.e2e import Submitted, cluster, spots, took
from tests.conftest import PATIENCE

pytestmark = [pytest.mark.slow, e2e.NAMESPACES]


@pytest.fixture(scope="module")
def laptop(boxes, shared, tmp_path_factory):
    """A laptop with a running head."""
    box = boxes.laptop(tmp_path_factory.mktemp("laptop"), shared)
    config = shared / "cluster.yaml"
    told = cluster("runpod")
    ladder = told["available_node_types"]["box"]["node_config"]["ladder"]
    told["available_node_types"]["gpu"] = {"resources": {"CPU": 1, "GPU": 1}, "node_config": {"ladder": ladder}}
    dear = [rung | {"max_usd_per_hour": 0.001} for rung in ladder]
    told["available_node_types"]["big"] = {"resources": {"CPU": 4}, "node_config": {"ladder": dear}}
    config.write_text(yaml.safe_dump(told))
    command = (sys.executable, "-m", "cluster", "head", "--config", config)
    began = time.time()
    head = box.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in head.stdout:
            if "end it" in line:
                break
        assert head.poll() is None
        took("cluster head", began)
        yield box
    finally:
        began = time.time()
        stopped = box.run(*command, "--stop")
        said = head.communicate(timeout=PATIENCE)[0]
        took("cluster head --stop", began)
        box.close()
    assert stopped.returncode == 0 and head.returncode == 0, said + stopped.stderr
    assert boxes.state()["rentals"] == []


def test_a_fresh_cluster_rents_the_gpu_that_a_job_trains_on(laptop, boxes, shared, undisturbed):
    """The boxes' GPUs are imaginary: Ray grants one, torch can't use it, and no CPU replaces it."""
    options, _ = undisturbed
    run = Run(str(shared / "imaginary"))
    job = Submitted(
        laptop, "--working-dir", e2e.code(shared), "--", "python", "jobs/sft.py", *options, "--run", run.path
    )
    boxes.wait(lambda state: len(spots(state)) == 2)
    while (status := job.status()) in ("PENDING", "RUNNING", None):
        time.sleep(0.5)
    said = job.logs()
    assert status == "FAILED" and "GPU, available on nodes of type gpu" in said, said
    assert re.search(
        r"Waiting for 2 workers \(1 GPU and 1 CPU core each\): .*2 × gpu (being rented|rented and booting)", said
    )
    assert "was given a GPU that torch" in run.provenance()["failure"] and not run.metrics()
    assert not re.search("Traceback|Resized to|StartupTimeout", said), said


@pytest.mark.soak
def test_nothing_that_can_be_rented_is_said_once_with_the_reason(laptop, boxes, shared, undisturbed):
    options, _ = undisturbed
    wide = ["--scale.device=cpu", "--scale.cpus_per_worker=4", "--run", shared / "wide"]
    job = Submitted(laptop, "--working-dir", e2e.code(shared), "--", "python", "jobs/sft.py", *options, *wide)
    give_up, said = time.time() + PATIENCE, ""
    while "nothing can be rented" not in said:
        assert job.status() in ("PENDING", "RUNNING", None) and time.time() < give_up, said
        time.sleep(1)
        said = job.logs()
    tries = lambda: int(laptop.run("grep", "-c", "max_usd_per_hour", "/tmp/ray/session_latest/logs/monitor.log").stdout)  # noqa: E731
    several = tries() + 4
    while tries() < several:
        assert time.time() < give_up, said
        time.sleep(1)
    said = job.logs()
    assert laptop.run("ray", "job", "stop", "--address", e2e.DASHBOARD, job.id).returncode == 0
    where = (
        r"Waiting for 2 workers \(4 CPU cores each\): nothing can be rented:\n +big: [^|]*max_usd_per_hour is 0\.001"
    )
    assert re.search(where, said), said
    assert said.count("nothing can be rented") == 1 and "Resized to" not in said, said


def test_two_workers_a_host_that_goes_dark_in_the_middle_and_the_same_bits(laptop, boxes, shared, undisturbed):
    options, expected = undisturbed
    given = [*options, "--scale.device=cpu"]
    assert e2e.lost_in_the_middle(laptop, boxes, shared, given, "e2e-runpod", "dark") == expected
    boxes.wait(lambda state: state["rentals"] == [])  # idle
