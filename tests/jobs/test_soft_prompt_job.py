"""Jobs with a soft prompt: what is evaluated is what was trained, and the run is the base of a further job."""

import json
import math

import pytest

from lib.run import Run
from tests.conftest import run_job
from tests.jobs.test_training import SHORT


@pytest.mark.slow
def test_a_run_with_a_prompt_is_evaluated_as_it_was_trained_and_goes_on(tiny_model, chats_file, local_ray, tmp_path):
    run = Run(tmp_path / "prompt")
    argv = ["--data.source", chats_file, *SHORT, "--scale.precision", "fp32", "--data.heldout_fraction", "0.3"]
    prompt = ["--model.adapter", "prompt", "--model.peft.num_virtual_tokens", "4", "--train.learning_rate", "0.5"]
    done = run_job("sft", "--model.base", tiny_model, *argv, *prompt, "--run", run.path, env=local_ray)
    assert done.returncode == 0, done.stderr
    assert "4 vectors in front of every row" in done.stdout
    [loss] = [row["eval_loss"] for row in run.metrics() if "eval_loss" in row]

    given = ["--runs.base", tiny_model, "--runs.prompt", run.path, "--tasks", "perplexity", "--data.source", chats_file]
    done = run_job("eval", *given, "--data.heldout_fraction", "0.3", "--run", tmp_path / "eval", env=local_ray)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "eval/reports/report.json").read_text())["metrics"]
    measured = {m["run"]: math.log(m["value"]) for m in metrics if m["metric"] == "perplexity"}
    # Four tokens that can't be drawn any more had a share of about 4 in 1,024 of the probability.
    assert measured["prompt"] == pytest.approx(loss - 4 / 1024, abs=1e-3)
    assert abs(measured["base"] - loss) > 0.02

    done = run_job("sft", "--model.base", run.path, *argv, "--run", tmp_path / "further", env=local_ray)
    assert done.returncode == 0, done.stderr
    before = [row["loss"] for row in run.metrics() if "loss" in row]
    after = [row["loss"] for row in Run(tmp_path / "further").metrics() if "loss" in row]
    assert after[0] < before[0]
    assert Run(tmp_path / "further").provenance()["template_sha256"] == run.provenance()["template_sha256"]
