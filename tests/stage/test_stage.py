"""The contract of jobs/: stages are data, and jobs, Tune and tests all call the same function train()."""

import subprocess
import sys
from dataclasses import replace

import pytest
import ray

from cluster.estimate.workload import stage, stages
from lib import data
from lib.run import Run
from lib.stage.training import train
from tests.conftest import REPO
from tests.stages import planned

WORDS = [
    "--train.max_steps",
    "2",
    "--train.logging_steps",
    "1",
    "--scale.precision",
    "fp32",
    "--scale.global_batch",
    "4",
]


def test_a_stage_is_read_without_torch_trl_or_ray():
    heavy = ("torch", "transformers", "trl", "ray", "datasets", "peft")
    code = f"from cluster.estimate.workload import stages; import jobs.eval, jobs.quantize, sys; print([*stages()], [m for m in {heavy} if m in sys.modules])"
    said = subprocess.check_output([sys.executable, "-c", code], cwd=REPO, text=True)
    assert "'dpo'" in said and said.strip().endswith("[]")


def test_a_stages_name_is_its_files():
    found = stages()
    files = {file.stem for file in (REPO / "jobs").glob("*.py") if "STAGE = Stage(" in file.read_text()}
    assert files == {*found} and all((REPO / s.example).is_file() for s in found.values())


@pytest.fixture
def words(tiny_model, chats_file, tmp_path):
    return ["--model.base", tiny_model, "--data.source", chats_file, "--run", str(tmp_path / "run"), *WORDS]


@pytest.mark.slow
def test_train_leaves_the_process_and_its_ray_alone(words, local_ray):
    asked = planned("sft", words)
    summary = train(asked, stage("sft"))
    run = Run(asked.job.run)
    assert ray.is_initialized() and run.finished()
    assert (summary.steps, summary.workers, summary.model_sha256) == (2, 1, run.provenance()["model_sha256"])


@pytest.mark.slow
def test_what_stops_train_is_raised_and_recorded(words, local_ray, tmp_path):
    """A KeyError recurs however often the step is retried, so Ray restarts no worker for it."""
    asked = planned("sft", words)
    builds = tmp_path / "builds"

    def build(job, args, inputs: data.Loaded):
        with builds.open("a") as f:
            f.write("once\n")
        raise RuntimeError("this stage is broken")

    broken = replace(stage("sft"), build=build)
    with pytest.raises(ray.train.ControllerError):
        train(asked, broken)
    kept = Run(asked.job.run).provenance()
    assert kept["status"] == "failed" and "this stage is broken" in kept["failure"]
    assert ray.is_initialized() and builds.read_text() == "once\n"
