"""Nodes go and come back: the group shrinks, goes on with the same global batch, and grows again."""

import os
import re
import subprocess
import sys
import time

import pytest

from lib.run import Run
from tests.conftest import REPO, run_job

STEPS = 60
ARGS = f"--train.max_steps {STEPS} --train.save_steps 4 --train.logging_steps 1 --train.learning_rate 1e-3 --scale.global_batch 32 --scale.micro_batch 1 --scale.precision fp32"


def losses(run: Run) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in run.metrics() if "loss" in r}


def wait_for(step: int, run: Run, process: subprocess.Popen, log) -> None:
    deadline = time.time() + 240
    while max(losses(run), default=0) < step:
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.time() < deadline, f"no step {step}: {log.read_text()[-3000:]}"
        time.sleep(0.3)


@pytest.mark.slow
def test_shrinks_and_grows_on_the_same_loss_curve(tiny_model, chats_file, tmp_path):
    from ray.cluster_utils import Cluster

    argv = ["--model.base", tiny_model, "--data.source", chats_file, *ARGS.split()]
    fixed, elastic, log = Run(tmp_path / "fixed"), Run(tmp_path / "elastic"), tmp_path / "log"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        command = [
            sys.executable,
            "jobs/sft.py",
            *argv,
            "--scale.workers",
            "2",
            "--scale.min_workers",
            "1",
            "--run",
            elastic.path,
        ]
        with log.open("w") as f:
            process = subprocess.Popen(
                command, cwd=REPO, env=os.environ | {"RAY_ADDRESS": cluster.address}, stdout=f, stderr=f
            )
        wait_for(6, elastic, process, log)
        cluster.remove_node(second, allow_graceful=False)
        wait_for(14, elastic, process, log)
        cluster.add_node(num_cpus=1)
        assert process.wait(timeout=400) == 0, log.read_text()[-3000:]
    finally:
        cluster.shutdown()
    groups = [int(n) for n in re.findall(r"from step \d+ on (\d) ×", log.read_text())]
    assert groups[0] == 2 and 1 in groups and groups[-1] == 2, groups
    assert run_job("sft", *argv, "--run", fixed.path, timeout=400).returncode == 0
    assert len(losses(elastic)) == STEPS
    # Same samples in the same steps; sums are taken in another order, and 60 steps carry the difference along.
    assert list(losses(elastic).values()) == pytest.approx(list(losses(fixed).values()), abs=2e-3)
