"""Nodes leave and return: the worker group shrinks, continues with the same global batch, and grows again."""

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from lib.run import Run
from tests import warm
from tests.conftest import PATIENCE, REPO, run_job
from tests.throttle import throttled

# Far more steps than needed: the test stops the job once the group has grown back, however fast the machine is.
ARGS = "--train.lr_scheduler_type constant --train.save_steps 4 --train.logging_steps 1 --train.learning_rate 1e-3 --scale.global_batch 8 --scale.micro_batch 1 --scale.precision fp32"


def losses(run: Run) -> list[float]:
    return [r["loss"] for r in run.metrics() if "loss" in r]


def groups(log) -> list[int]:
    """Returns the sizes of the started worker groups, in order."""
    return [int(n) for n in re.findall(r"from step \d+ on (\d) ×", log.read_text())]


def wait_until(reached, process: subprocess.Popen, log) -> None:
    deadline = time.time() + PATIENCE
    while not reached():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.time() < deadline, log.read_text()[-3000:]
        time.sleep(0.3)


@pytest.mark.slow
def test_shrinks_and_grows_on_the_same_loss_curve(tiny_model, chats_file, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    argv = ["--model.base", tiny_model, "--data.source", chats_file, *ARGS.split()]
    fixed, elastic, log = Run(tmp_path / "fixed"), Run(tmp_path / "elastic"), tmp_path / "log"
    env = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30"}  # how long Ray waits for the lost worker
    monkeypatch.setattr(sys, "executable", warm.python())  # for the workers of this Ray
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        size = ["--train.max_steps", "5000", "--scale.workers", "2", "--scale.min_workers", "1"]
        command = [warm.python(), "jobs/sft.py", *argv, *size, "--run", elastic.path]
        with log.open("w") as f:
            process = subprocess.Popen(
                command, cwd=REPO, env=os.environ | env | {"RAY_ADDRESS": cluster.address}, stdout=f, stderr=f
            )
        wait_until(lambda: len(losses(elastic)) >= 6, process, log)
        cluster.remove_node(second, allow_graceful=False)
        wait_until(lambda: groups(log)[-1] == 1 and len(losses(elastic)) >= 14, process, log)
        with throttled(p.pid for p in warm.tree(psutil.Process())):  # Ray looks for another node every 10 s
            cluster.add_node(num_cpus=1)
            wait_until(lambda: groups(log)[-1] == 2, process, log)
        grown = len(losses(elastic))
        wait_until(lambda: len(losses(elastic)) >= grown + 6, process, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE) == 130, log.read_text()[-3000:]
        assert f"--resume {elastic.path}" in log.read_text()
    finally:
        cluster.shutdown()
    assert groups(log) == [2, 1, 2]
    steps = min(grown + 6, 80)
    assert run_job("sft", *argv, "--train.max_steps", str(steps), "--run", fixed.path, timeout=PATIENCE).returncode == 0
    # The same samples in the same steps; but sums are taken in another order, and the difference accumulates over the steps.
    assert losses(elastic)[:steps] == pytest.approx(losses(fixed), abs=2e-3)
