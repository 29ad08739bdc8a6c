"""The linear probe reads from an encoder's vectors what is in them, and no more."""

import json
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest

from lib.evals.evaluate import measure, warnings
from lib.evals.job import EvalJob
from lib.evals.measures import linear_probe
from lib.evals.plan import plan
from lib.evals.report.schema import Metric, RunInfo
from lib.generation.pool import Engine
from tests import stages
from tests.methods import pretrained


class BagOfWords:
    """An engine whose encoder counts words."""

    def embed(self, run: str, texts: list[str]) -> Future:
        words = sorted({word for text in texts for word in text.lower().replace(".", " ").split()})
        found: Future = Future()
        found.set_result(
            [tuple(float(text.lower().replace(".", " ").split().count(w)) for w in words) for text in texts]
        )
        return found


def test_classes_that_a_plane_separates_are_read_and_unrelated_ones_are_not():
    rng = np.random.default_rng(0)
    vectors, classes = rng.normal(size=(600, 4)), rng.integers(2, size=600).astype(str)
    assert np.mean(linear_probe.right(vectors[:400], classes[:400], vectors[400:], classes[400:])) < 0.6
    vectors[:, 2] += np.where(classes == "1", 9, -9)
    assert linear_probe.right(vectors[:400], classes[:400], vectors[400:], classes[400:]) == [1.0] * 200


def test_counted_words_tell_names_and_not_always_the_hour():
    context = SimpleNamespace(job=SimpleNamespace(runs={"words": ""}, limit=200), engine=BagOfWords())
    hour, day, name = linear_probe.measure(context)
    assert [s.metric for s in (hour, day, name)] == ["hour", "day", "name"] and hour.headline
    assert len(name.tops) == 200 and np.mean(name.tops) > 0.95
    assert hour.chance < np.mean(hour.tops) < 0.9


@pytest.mark.slow
def test_encoders_of_two_kinds_are_compared_in_one_evaluation(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"a text with {n}"}) + "\n" for n in range(60)))
    runs = {
        name: stages.planned("pretrain", pretrained.options(name, str(tmp_path / "texts.jsonl"), str(tmp_path / name))).job.model.base
        for name in ("mlm", "electra")
    }  # fmt: skip
    planned = plan(EvalJob(run=str(tmp_path / "run"), runs=runs, tasks=["linear_probe"], limit=50))
    with Engine(planned.specs, here=True, say=lambda line: None) as engine:
        _, scores = measure(planned, engine, None)
    assert [(s.run, s.metric, len(s.tops)) for s in scores] == [
        (run, metric, 50) for run in ("mlm", "electra") for metric in ("hour", "day", "name")
    ]


def test_chat_templates_matter_only_where_prompts_are_rendered():
    runs = [RunInfo(name, name, "pretrain", template_sha256=name) for name in "ab"]
    of = lambda *tasks: [Metric(t, "exact", "a", 0.5, 0.4, 0.6, 9, "wilson") for t in tasks]  # noqa: E731
    assert warnings(runs, of("linear_probe", "sts"), EvalJob(runs={})) == []
    (said,) = warnings(runs, of("linear_probe", "demo"), EvalJob(runs={}))
    assert said.startswith("The runs were trained with different chat templates")
