"""Measures of classifiers: macro-F1 of a hand-written table; accuracy and correlation of tiny trained models; wrong models are refused."""

import json
import shutil
from pathlib import Path

import pytest

from lib.evals.context import Context
from lib.evals.job import EvalJob
from lib.evals.measures.classification import macro_f1
from lib.evals.plan import plan
from lib.evals.registry import get
from lib.evals.report import summary
from lib.generation.pool import Engine
from lib.generation.reward_model import check_config
from lib.models import locate
from tests.methods import classified, embedded
from tests.methods.test_classification import exported


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    return classified.rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def models(tiny_model, files, tmp_path_factory) -> dict[str, str]:
    """{task: a model trained for it}"""
    folder, found = tmp_path_factory.mktemp("models"), {}
    base = embedded.base(tiny_model, folder / "base")
    for task in ("pairs", "scores"):
        trainer = classified.built(base, files[task], str(folder / task), dropout=0)
        trainer.train()
        found[task] = exported(trainer, classified.options(base, files[task], str(folder)), folder / f"made-{task}")
    return found


def test_macro_f1_of_a_hand_written_table():
    """a: 1 of 2 right, said twice: 2·1/(2+2). b: 1 right, said once. c: 0 of 1, never said."""
    assert macro_f1(["a", "a", "b", "c"], ["a", "b", "b", "a"]) == pytest.approx((2 / 4 + 2 / 3 + 0) / 3)


def test_measures(models, files, tmp_path):
    def measured(task: str, model: str):
        data = {"classification": files["pairs"], "scores": files["scores"]}[task]
        job = EvalJob(
            str(tmp_path / "run"), {"a": model}, tasks=[task], task_data={task: data}, limit=None, dtype="float32"
        )
        planned = plan(job)
        with Engine(planned.specs, say=lambda line: None, here=True, device="cpu") as engine:
            return get(task)(Context(planned.job, engine, None, None)), engine.specs["a"].makes

    (accuracy, f1), makes = measured("classification", models["pairs"])
    assert makes == "classifier" and accuracy.headline and accuracy.kind == "proportion"
    assert len(accuracy.tops) == 25 and set(accuracy.tops) <= {0.0, 1.0} and accuracy.chance == 9 / 25
    assert 0 <= f1.estimate.value <= 1 and f1.estimate.low is None and f1.estimate.method.startswith("no interval")
    (spearman,), _ = measured("scores", models["scores"])
    of = summary.metric(spearman, 0)
    assert -1 <= of.value <= 1 and of.n == 25 and of.low is not None


def test_wrong_models_and_rows_are_refused(models, files, tiny_model, tmp_path):
    def refused(task: str, model: str, data: str) -> str:
        with pytest.raises(ValueError) as e:
            plan(EvalJob(str(tmp_path / "run"), {"a": model}, tasks=[task], task_data={task: data}))
        return str(e.value)

    said = refused("scores", models["pairs"], files["scores"])
    assert "tasks: scores: runs.a is a classifier. Use classification." in said
    said = refused("classification", models["scores"], files["pairs"])
    assert "tasks: classification: runs.a is a regression. Use scores." in said
    said = refused("classification", models["pairs"], files["classes"])
    assert "held-out rows have labels that runs.a has no class for: 0, 1, 2. Its classes are no, perhaps, yes." in said
    assert "is a language model. Name a classifier." in refused("classification", tiny_model, files["pairs"])


def test_reward_models_and_classifiers_are_told_apart(models, tmp_path):
    """By the number of outputs, and by the problem_type that jobs/classify.py writes."""
    config = json.loads(Path(models["scores"], "config.json").read_text())
    assert locate.kind(models["scores"]) == locate.kind(models["pairs"]) == "classifier"
    with pytest.raises(ValueError, match=r"reward: x holds a regression"):
        check_config("x", config)
    shutil.copytree(models["scores"], tmp_path / "reward")
    (tmp_path / "reward/config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "problem_type"}))
    assert locate.kind(str(tmp_path / "reward")) == "reward"
