"""jobs/eval.py from end to end on tiny models: every task, every file of the report."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from lib.evals.evaluate import evaluate
from lib.evals.job import EvalJob
from lib.evals.report import Report
from lib.run import Run
from tests.conftest import REPO


@pytest.fixture(scope="module")
def job(runs, tmp_path_factory) -> EvalJob:
    return EvalJob(
        run=str(tmp_path_factory.mktemp("eval") / "eval"),
        runs={k: runs[k] for k in ("base", "sft", "dpo")},
        reward=runs["reward"],
        tasks=["demo", "perplexity", "preference_accuracy", "win_rate", "kl"],
        limit=6,
        max_new_tokens=8,
        dtype="float32",
        samples=2,
    )


@pytest.fixture(scope="module")
def report(job, local_ray) -> Report:
    return evaluate(job, "python jobs/eval.py --config configs/eval.yaml", say=lambda line: None)


def test_every_task_gives_its_numbers(report, job):
    found = {(m.task, m.metric, m.run, m.versus, m.judge) for m in report.metrics}
    for run in job.runs:
        assert {("demo", "exact", run, None, None), ("perplexity", "perplexity", run, None, None)} <= found
    assert ("preference_accuracy", "preference_accuracy", "reward", None, None) in found
    assert {("win_rate", "win_rate", "dpo", "sft", "rule"), ("win_rate", "win_rate", "dpo", "sft", "reward")} <= found
    assert ("kl", "kl", "dpo", "sft", None) in found
    assert all(m.n == 6 for m in report.metrics if m.metric not in ("right_against_wrong", "bare_against_chatty"))
    assert all(m.low <= m.value <= m.high for m in report.metrics if m.low is not None)


def test_a_random_model_has_the_perplexity_of_its_vocabulary(report):
    """Weights are random, so every one of 1,024 tokens is about as likely as another."""
    base = next(m for m in report.metrics if (m.metric, m.run) == ("perplexity", "base"))
    assert 700 < base.value < 1500


def test_files(report, job):
    run = Run(job.run)
    assert Report.from_json(run.read_text("reports/report.json")) == report
    assert report.title in run.read_text("reports/report.md")
    rows = [json.loads(line) for line in run.read_text("reports/examples.jsonl").splitlines()]
    assert len(rows) == 6 * 3 + 6 * 2  # greedy answers of three runs, sampled ones of two
    assert {r["run"] for r in rows if r["task"] == "win_rate"} == {"sft", "dpo"}
    assert [len(s.answers) for s in report.samples] == [3, 3]
    assert report.runs[1].curves[0].values[0] == 2.0 and report.runs[1].settings["train.seed"] == 42


def test_same_numbers_again_with_another_number_of_processes(report, job, local_ray, tmp_path):
    again = evaluate(replace(job, run=str(tmp_path / "again"), workers=1), say=lambda line: None)
    for a, b in zip(report.metrics, again.metrics, strict=True):
        assert (a.task, a.metric, a.run, a.n) == (b.task, b.metric, b.run, b.n)
        assert b.value == pytest.approx(a.value, rel=1e-5, abs=1e-6)
    assert [s.answers for s in again.samples] == [s.answers for s in report.samples]


def test_a_model_against_itself(job, runs, local_ray, tmp_path):
    """The same weights twice: the same answers, no KL, half the wins, and no verdict of improvement."""
    twin = replace(
        job,
        run=str(tmp_path / "twin"),
        runs={"a": runs["sft"], "b": runs["sft"]},
        tasks=["demo", "win_rate", "kl"],
        workers=1,
    )
    report = evaluate(twin, say=lambda line: None)
    assert {m.value for m in report.metrics if m.metric == "win_rate"} == {0.5}
    assert next(m.value for m in report.metrics if m.metric == "kl") == 0.0
    assert all(v.holds is None for v in report.verdicts if "win" in v.evidence or "above" in v.claim)


def test_a_model_that_does_not_load_is_named(job, make_run, local_ray, tmp_path):
    broken = make_run("broken")
    (Run(broken).fs).rm(Run(broken).at("model/model.safetensors"))
    with pytest.raises(RuntimeError, match=r"broken: .*(safetensors|no file)"):
        evaluate(
            replace(job, run=str(tmp_path / "x"), runs={"broken": broken}, reward=None, tasks=["demo"]),
            say=lambda line: None,
        )


def test_on_a_file_of_pairs_as_a_user_does_it(runs, pairs_file, tmp_path):
    """Other data than the demo: prompts, chosen answers and pairs all from one file; the reward run judges."""
    names = [f"--runs.{k}={runs[k]}" for k in ("sft", "dpo")]
    tasks = ["--tasks", "perplexity", "preference_accuracy", "win_rate", "kl"]
    data = ["--data.source", pairs_file, "--data.heldout_fraction", "0.3"]
    rest = ["--reward", runs["reward"], "--limit", "5", "--max_new_tokens", "4", "--run", str(tmp_path / "e")]
    alone = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "jobs/eval.py", *names, *tasks, *data, *rest]
    done = subprocess.run(command, cwd=REPO, env=alone, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = Report.from_json(Run(str(tmp_path / "e")).read_text("reports/report.json"))
    assert {(m.metric, m.n) for m in report.metrics if m.headline} == {
        (x, 5) for x in ("perplexity", "preference_accuracy", "win_rate", "kl")
    }
    assert {m.judge for m in report.metrics if m.metric == "win_rate"} == {"reward"}
    assert any("perplexity" in v.claim for v in report.verdicts)
    assert Run(str(tmp_path / "e")).finished() and "jobs/eval.py" in report.commands[-1]
    assert "reports/report.html" in done.stdout and report.next[1] in done.stdout
