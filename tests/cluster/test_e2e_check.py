"""python -m cluster check on real boxes: all steps pass; a failing job is reported, and a killed check leaves nothing behind."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

from cluster.check.rented import MINUTES
from cluster.check.steps import DESTROYED, STEPS
from tests.cluster import e2e
from tests.cluster.e2e import DASHBOARD, took
from tests.conftest import PATIENCE, s3_environment, s3_serving

pytestmark = [pytest.mark.slow, e2e.NAMESPACES]
COMMAND = (sys.executable, "-m", "cluster", "check", "--market", "vast", "--device", "cpu", "--yes")


@pytest.fixture
def bucket(apart):
    """s3://runs, on the only address that the laptop and the boxes can reach."""
    laptop, _, _ = apart
    with s3_serving(re.search(r"//([\d.]+):", laptop.env["VAST_URL"])[1]) as address:
        laptop.env |= s3_environment(address)
        yield address


def told(path) -> dict[str, dict]:
    return {step["step"]: step for step in json.loads(path.read_text())["steps"]}


@pytest.mark.timeout(60 * MINUTES + 300)
def test_two_boxes_pass_every_step_and_the_ledger_is_the_bill(apart, bucket):
    laptop, boxes, shared = apart
    began, path = time.time(), shared / "check.json"
    done = laptop.run(*COMMAND, "--workers", "2", "--store", "s3://runs/checks", "--report", path, seconds=60 * MINUTES)
    took("check with two boxes", began)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    steps, report = told(path), json.loads(path.read_text())
    gpu = {"GPU driver", "torch sees the GPU"}
    assert {s for s in steps if steps[s]["outcome"] == "not asked for"} == gpu  # and not ticked
    assert all(steps[s]["outcome"] == "passed" for s in STEPS if s not in gpu) and report["passed"]
    assert steps["boxes exchange tensors"]["detail"].startswith("gloo: 16 MB")
    assert re.search(r"20 steps on the CPU, loss [\d.]+ → [\d.]+", steps["LoRA SFT on the box"]["detail"])
    assert report["other_api_than_the_markets"] == ["vast"]
    state, bill = boxes.state(), boxes.bill()
    assert state["rentals"] == [] and len(bill["rentals"]) == 2
    assert report["usd"] == pytest.approx(bill["total_usd"], rel=0.02)
    assert sum(s["usd"] for s in report["steps"]) == pytest.approx(report["usd"], rel=0.02)
    # Texts that the report must not contain.
    text = path.read_text()
    hosts = {os.uname().nodename, re.search(r"//([\d.]+):", laptop.env["VAST_URL"])[1], "127.77.0."}
    for gone in {laptop.env["VAST_API_KEY"], "runs/checks", *hosts}:
        assert gone not in text, gone


def test_a_job_that_fails_is_named_and_the_box_destroyed(apart):
    laptop, boxes, shared = apart
    path = shared / "check.json"
    running = laptop.start(*COMMAND, "--report", path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = ""
    for line in running.stdout:
        said += line
        if line.startswith("✔ SSH login"):  # the job is stopped before it can start
            [job] = json.loads(laptop.run("curl", "-sf", f"{DASHBOARD}/api/jobs/").stdout)
            stop = laptop.run("curl", "-sf", "-X", "POST", f"{DASHBOARD}/api/jobs/{job['submission_id']}/stop")
            assert stop.returncode == 0, stop.stderr
    assert running.wait(PATIENCE) == 1, said
    steps = told(path)
    assert steps["LoRA SFT on the box"]["outcome"] == "failed", said
    assert steps["second box"]["outcome"] == steps["boxes exchange tensors"]["outcome"] == "not reached"
    assert steps[DESTROYED]["outcome"] == "passed" and boxes.state()["rentals"] == []


def test_a_check_that_is_killed_leaves_nothing(apart):
    """The head ends with it and destroys its rentals."""
    laptop, boxes, _ = apart
    boxes.control("next", market="vast", fault="stuck")
    running = laptop.start(*COMMAND, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = ""
    for line in running.stdout:
        said += line
        if line.startswith("✔ rented"):
            break
    assert len(boxes.state()["rentals"]) == 1, said
    [inner] = laptop.run("pgrep", "-f", "cluster check").stdout.split()
    assert laptop.run("kill", "-KILL", inner).returncode == 0
    boxes.wait(lambda state: state["rentals"] == [])
    running.communicate(timeout=PATIENCE)
