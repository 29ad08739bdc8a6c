"""A job on a cluster is notified that the budget is spent or that its node will go away."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lib.run import Run
from lib.runtime import checkpoint, cluster_signals
from lib.runtime.gcs import Gcs
from tests import warm
from tests.conftest import PATIENCE, REPO, run_job

STEPS = 10**6  # so many that the job can't end first, however late Ray's preemption watcher starts
EVERY = 500  # steps between two checkpoints
ARGS = f"--train.save_steps {EVERY} --train.logging_steps 1 --scale.global_batch 8 --scale.micro_batch 4 --scale.precision fp32 --train.learning_rate 1e-3 --train.lr_scheduler_type constant"


def said_by(log: Path) -> str:
    """Returns the job's output with only every hundredth of its steps."""
    return "\n".join(x for x in log.read_text().splitlines() if not re.match(r"\s+step \d*([1-9]\d|\d[1-9])/", x))


def whole(run: Run, step: int) -> bool:
    return step in checkpoint.steps(run) and checkpoint.damage(run, step) is None


def wait_until(reached, process, log: Path, seconds: float = PATIENCE) -> None:
    deadline = time.time() + seconds
    while not reached():
        assert process.poll() is None and time.time() < deadline, said_by(log)
        time.sleep(0.1)


@pytest.mark.slow
def test_notified_at_any_step_it_saves_stops_and_resumes_to_the_same_bits(
    tiny_model, chats_file, tmp_path, monkeypatch
):
    """Two ranks. First its node is drained: it saves and continues. Then the budget is spent: it saves, stops and prints how to resume."""
    from ray.cluster_utils import Cluster

    argv = ["--model.base", tiny_model, "--data.source", chats_file, *ARGS.split(), "--scale.workers", "2"]
    straight, told, log = Run(tmp_path / "straight"), Run(tmp_path / "told"), tmp_path / "log"
    saving = re.compile(r"Saving at step (\d+): ranks? [01] ")
    python = sys.executable  # the driver's, whose command line Ray shows as the entrypoint
    monkeypatch.setattr(sys, "executable", warm.python())  # for the workers of this Ray
    # lib.runtime.ray_session.connect sets it where another test of this process has called it, and Ray Train's controller, which
    # starts the watcher, would inherit it from this Ray.
    monkeypatch.delenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", raising=False)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    env = os.environ | {"RAY_ADDRESS": cluster.address}
    drain = f"drain-node --address {cluster.address} --node-id {second.node_id} --deadline-remaining-seconds 600"
    drain += " --reason DRAIN_NODE_REASON_PREEMPTION --reason-message taken"
    # Imported before the job starts: its steps take less than 0.1 s, so it might end during the import.
    ready = [python, "-c", "from ray.scripts.scripts import main; input(); main()", *drain.split()]
    drainer = subprocess.Popen(ready, env=env, stdin=subprocess.PIPE)
    try:
        gcs = Gcs(cluster.address)
        cluster_signals.tell(gcs, cluster_signals.Stop("An old word.", time.time() - 1, 1.0))  # has no effect
        assert not cluster_signals.busy(gcs)
        with log.open("w") as f:
            process = subprocess.Popen(
                [python, "jobs/sft.py", *argv, "--train.max_steps", str(STEPS), "--run", told.path],
                cwd=REPO,
                env=env,
                stdout=f,
                stderr=f,
            )
        wait_until(lambda: len(told.metrics()) > 5, process, log)
        (job,) = cluster_signals.jobs(gcs)
        assert cluster_signals.busy(gcs) and job["ended"] is None and "jobs/sft.py" in job["entrypoint"]
        assert (job["state"].run, job["state"].stage, job["state"].max_steps) == (told.path, "sft", STEPS)
        drainer.communicate(b"\n")
        assert drainer.returncode == 0
        wait_until(lambda: saving.search(log.read_text()), process, log)
        first = int(saving.search(log.read_text())[1])
        wait_until(lambda: whole(told, first) or whole(told, first // EVERY * EVERY + EVERY), process, log)
        cluster_signals.tell(
            gcs, cluster_signals.Stop("budget.total_usd: $4.90 of $5.00 are spent.", time.time() + 60, 3.6)
        )
        at = time.time()
        assert process.wait(timeout=PATIENCE) == 1, f"told {time.time() - at:.1f} s ago. {said_by(log)}"
        took = time.time() - at
        (job,) = cluster_signals.jobs(gcs)
        assert not cluster_signals.busy(gcs) and job["ended"] > at
    finally:
        drainer.kill()
        cluster.shutdown()
    step = checkpoint.steps(told)[-1]
    assert 5 < first < step < STEPS and checkpoint.damage(told, step) is None
    output = log.read_text()
    assert re.search(r"2 workers on 2 machines, [\d.e+]+ MB/s between them: exchanging 0\.\d+ MB of gradients", output)
    said = re.search(
        rf"Saved at step {step} of {STEPS}; the other {STEPS - step}, at (\S+) s and \$3.6 an hour, cost", output
    )
    assert said and "budget.total_usd: $4.90 of $5.00 are spent." in told.provenance()["failure"]
    assert f"Continue with: python jobs/sft.py --resume {told.path}" in output
    assert job["state"].step == step and job["state"].saved > at
    print(f"told → saved, stopped and gone after {took:.1f} s, at step {step}")
    settings = told.job()
    settings["train"]["max_steps"] = step + 5  # a million steps take hours
    told.write_text("job.yaml", yaml.safe_dump(settings))
    assert run_job("sft", "--resume", told.path).returncode == 0
    assert run_job("sft", *argv, "--train.max_steps", str(step + 5), "--run", straight.path).returncode == 0
    assert told.provenance()["model_sha256"] == straight.provenance()["model_sha256"]
