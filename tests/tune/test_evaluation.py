"""An evaluation task as the metric of a search."""

import json
import math

import pytest

from lib.config.job import Data, Job
from lib.evals.task import Scores
from lib.run import Run
from tests.conftest import run_job
from tests.tune.test_search import of, search, write  # noqa: F401  write is a fixture
from tests.tune.test_space import SPACE, tried
from tune import evaluation, metrics, random_search
from tune.proposals import propose, told
from tune.settings import Settings


def test_what_a_metric_is():
    tasks = {m: metrics.task_of(m) for m in ("demo", "demo.terse", "win_rate.rule", "lm_eval:arc_easy.acc")}
    assert tasks == {"demo": "demo", "demo.terse": "demo", "win_rate.rule": "win_rate", "lm_eval:arc_easy.acc": "lm_eval:arc_easy"}  # fmt: skip
    assert metrics.task_of("lm_eval:my/own.yaml") == "lm_eval:my/own.yaml"
    assert metrics.task_of("lm_eval:my/own.yaml.acc") == "lm_eval:my/own.yaml"
    assert metrics.task_of("eval_rewards/accuracies") is metrics.task_of("eval_loss") is None
    lower = ("eval_loss", "perplexity", "kl", "perplexity.bits_per_byte")
    assert all(map(metrics.lower_is_better, lower))
    assert not any(map(metrics.lower_is_better, ("demo", "demo.slots", "win_rate", "eval_rewards/accuracies")))


def test_the_halves_of_the_examples_are_all_of_them_and_groups_stay_together():
    ids = [f"e-{i}" for i in range(60)]
    tops, groups = [float(i % 3 == 0) for i in range(60)], [f"g-{i // 2}" for i in range(60)]
    alike = {"run": "trial", "ids": ids, "tops": tops}
    scores = [
        Scores("t", "right", **alike, headline=True),
        Scores("t", "grouped", **alike, groups=groups),
        Scores("t", "nats", **alike, bottoms=[2.0] * 60, kind="perplexity"),
        Scores("t", "right", "other", ids, [1.0] * 60),
        Scores("t", "rating", "trial", ids, []),
    ]
    (values, _), (first, one), (second, two) = (
        evaluation.columns(scores, "trial", h) for h in ("both", "first", "second")
    )
    mean = sum(tops) / 60
    assert values == pytest.approx({"t.right": mean, "t": mean, "t.grouped": mean, "t.nats": math.exp(mean / 2)})
    assert sorted(one["t"]["ids"] + two["t"]["ids"]) == sorted(ids) and first["t"] != second["t"]
    assert 15 < len(one["t"]["ids"]) < 45
    both = {i: b for kept in (one, two) for i, b in zip(kept["t"]["ids"], kept["t"]["batches"], strict=True)}
    assert [both[i] for i in ids] == [[t, 1.0] for t in tops]
    whole = one["t.grouped"]["ids"] + two["t.grouped"]["ids"]
    assert sorted(whole) == sorted(set(groups)) and all(b == 2 for _, b in one["t.grouped"]["batches"])


def test_heldout_rows_are_divided_as_for_the_heldout_loss():
    """Otherwise a trial could be stopped by a row on which it is confirmed."""
    trained = Job(run="/runs/t", stage="sft", data=Data(source="x.jsonl", heldout_half="first"))
    halves = {
        h: evaluation.job(Settings(metric="perplexity"), trained, h).data.heldout_half for h in ("first", "second")
    }
    assert halves == {"first": "first", "second": "second"}


def test_with_several_judges_the_metric_names_one():
    alike = {"run": "trial", "ids": ["a", "b"], "headline": True}
    scores = [Scores("win_rate", "win_rate", tops=[1.0, v], judge=j, **alike) for j, v in (("rule", 0.0), ("gpt", 1.0))]
    assert evaluation.columns(scores, "trial", "both")[0] == {"win_rate.win_rate.rule": 0.5, "win_rate.win_rate.gpt": 1}
    assert evaluation.columns(scores[:1], "trial", "both")[0] == {"win_rate.win_rate.rule": 0.5, "win_rate": 0.5}


def test_stopped_trials_are_told_by_what_they_were_stopped_by_the_better_the_higher():
    s = Settings(metric="demo", scheduler="asha")
    assert s.curve == "eval_loss" and s.curve_mode("max") == "min"
    drawn = propose(SPACE, Settings(search="random"), "min", [], 3)
    assert told(SPACE, tried(3, drawn, 0.5, "stopped"), s, "max").intermediate_values == {10: -0.5}
    by = Settings(metric="demo", stop_by="eval_rewards/accuracies")
    assert (
        by.curve_mode("max") == "max"
        and told(SPACE, tried(3, drawn, 0.5, "stopped"), by, "max").intermediate_values == {}
    )
    assert random_search.drawn_at_random([tried(3, drawn, 0.5, "stopped")], s) == []


@pytest.mark.slow
def test_a_search_by_a_task_measures_what_an_evaluation_does_and_changes_no_trial(write, local_ray, tmp_path):  # noqa: F811
    keys = {"metric": "perplexity", "scheduler": "asha", "concurrent": 1, "confirm": 2, "finalists": 1}
    said, report = search(write(keys | {"fresh_rows": False}), env=local_ray)
    assert "asha by eval_loss" in said and "perplexity" in said.split("best")[0]
    finished = [t for t in report["trials"] if t["status"] == "finished"]
    assert all(t["value"] is None for t in report["trials"] if t["status"] == "stopped")
    best = min((t for t in finished if t["role"] == "search"), key=lambda t: t["value"])
    assert report["mode"] == "min" and report["trials"][report["best"]]["value"] is not None
    command = [f"--runs.trial={best['run']}", "--tasks", "perplexity", "--workers", "1", "--engine", "transformers"]
    given = [f"--data.source={Run(best['run']).job()['data']['source']}", "--data.heldout_fraction=0.3"]
    done = run_job("eval", *command, *given, "--run", tmp_path / "eval", env=local_ray)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "eval/reports/report.json").read_text())["metrics"]
    (evaluated,) = [m["value"] for m in metrics if m["metric"] == "perplexity"]
    assert best["value"] == pytest.approx(evaluated, rel=1e-5)
    assert [t["of"] for t in of(report, "confirm")].count(0) == 2 and "perplexity" in report["verdict"][0]
    # Trained again by itself, the job ends with the same bits: the evaluations in between changed nothing.
    again = run_job("sft", "--config", tmp_path / "search/best.yaml", "--run", tmp_path / "again", env=local_ray)
    assert again.returncode == 0, again.stderr
    mine = Run(report["trials"][report["best"]]["run"]).provenance()["model_sha256"]
    assert Run(tmp_path / "again").provenance()["model_sha256"] == mine
