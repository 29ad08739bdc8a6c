"""STS and retrieval: metrics of hand-written similarities, and of a tiny encoder's vectors, worked out again from the definitions."""

import json
import math
from dataclasses import replace

import pytest

from lib.evals.context import Context
from lib.evals.job import EvalJob
from lib.evals.measures import embedding
from lib.evals.plan import plan
from lib.evals.registry import get
from lib.evals.report import summary
from lib.evals.statistics import intervals, paired_ranks
from lib.evals.task import Scores
from lib.generation.pool import Engine
from tests.methods import embedded


def test_ranks_of_hand_written_vectors():
    """Similarities of three passages to an anchor: 1, 0.8, 0.6."""
    anchor, passages = [1.0, 0.0], [[0.8, 0.6], [1.0, 0.0], [0.6, 0.8]]
    first, second, third, two, tie = embedding.ranked(
        [anchor] * 4 + [[0.0, 0.0]], passages, [{1}, {0}, {2}, {0, 2}, {0}]
    )
    assert first == {"recall@1": 1, "recall@10": 1, "mrr": 1, "ndcg@10": 1}
    assert second == {"recall@1": 0, "recall@10": 1, "mrr": 1 / 2, "ndcg@10": pytest.approx(0.63093, abs=1e-5)}
    assert third == {"recall@1": 0, "recall@10": 1, "mrr": pytest.approx(1 / 3), "ndcg@10": 0.5}
    ideal = 1 + 1 / math.log2(3)
    assert two == {
        "recall@1": 0,
        "recall@10": 1,
        "mrr": 1 / 2,
        "ndcg@10": pytest.approx((1 / math.log2(3) + 0.5) / ideal),
    }
    assert tie["mrr"] == pytest.approx(1 / 3), "of equal similarities the positive's is ranked last"
    far = embedding.ranked([anchor], [[1 - n / 100, 0] for n in range(12)], [{11}])[0]
    assert far == {"recall@1": 0, "recall@10": 0, "mrr": pytest.approx(1 / 12), "ndcg@10": 0}


def test_rank_correlation():
    """ρ = 1 − 6 Σ d² / (n (n² − 1)) = 1 − 6 · 4 / (5 · 24); z ± 1.96 √((1 + 0.32) / 2)"""
    e = intervals.spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5])
    assert e.value == pytest.approx(0.8) and e.n == 5
    assert (e.low, e.high) == pytest.approx((math.tanh(1.098612 - 1.592297), math.tanh(1.098612 + 1.592297)), abs=1e-4)
    with pytest.raises(ValueError, match="numbers that differ"):
        intervals.spearman([1, 1], [2, 3])


def test_rank_correlations_of_two_runs_are_compared_on_the_same_pairs():
    """The difference of run b from a is 0.2: ρ = 0.8 and 1 on five pairs, each 20 times with noise that keeps the order."""
    import numpy as np
    from scipy import stats

    rng, wanted = np.random.default_rng(0), [1.0, 2, 3, 4, 5] * 20
    a, b = ([x + float(rng.normal(0, 0.01)) for x in order * 20] for order in ([2.0, 1, 4, 3, 5], [1.0, 2, 3, 4, 5]))
    ids = [f"row-{i}" for i in range(100)]
    scores = [Scores("sts", "spearman", run, ids, x, wanted, kind="spearman", headline=True) for run, x in (("a", a), ("b", b))]  # fmt: skip
    ones = [summary.metric(s, 0) for s in scores]
    assert [m.value for m in ones] == pytest.approx([stats.spearmanr(x, wanted).statistic for x in (a, b)])
    assert ones[0].method == "Bonett and Wright"
    (c,) = summary.comparisons(scores, 0)
    assert (
        c.difference == pytest.approx(ones[1].value - ones[0].value) and c.n == 100 and c.p == pytest.approx(2 / 2001)
    )
    assert 0 < c.low < c.difference < c.high < 0.4 and c.method == "paired bootstrap, percentile"
    same = summary.comparisons([scores[0], replace(scores[0], run="b")], 0)[0]
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    few = paired_ranks.difference([1, 2, 3, 4], [1, 2, 4, 3], [1, 1, 1, 2])[0]
    assert few.low is None and few.method == "no interval: some resamples hold equal numbers only"


def test_measures_of_an_encoder(tiny_model, tmp_path):
    base = embedded.base(tiny_model, tmp_path / "base")
    files = embedded.rows(tmp_path)
    pairs = [{"sentence1": f"the {n}", "sentence2": "the " * n, "score": n} for n in range(1, 9)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    data = {"sts": str(tmp_path / "pairs.jsonl"), "retrieval": files["mnrl"]}
    job = EvalJob(
        str(tmp_path / "run"), {"a": base, "b": base}, tasks=[*data], task_data=data, limit=10, dtype="float32"
    )
    planned = plan(job)
    assert [spec.makes for spec in planned.specs] == ["encoder"] * 2
    with Engine(planned.specs, say=lambda line: None, here=True, device="cpu") as engine:
        context = Context(planned.job, engine, None, None)
        found = {(s.metric, s.run): s for name in data for s in get(name)(context)}
        anchors = engine.embed("a", ["one", "two"]).result()
    assert len(anchors) == 2 and len(anchors[0]) == 32 and math.hypot(*anchors[0]) == pytest.approx(1)
    of_a = summary.metric(found["spearman", "a"], 0)
    assert -1 <= of_a.value <= 1 and of_a.n == 8
    assert {c.metric for c in summary.comparisons([*found.values()], 0)} >= {"spearman", "recall@1", "mrr"}
    assert len(found["recall@1", "a"].tops) == 10
    rank = [1 / top for top in found["mrr", "a"].tops]
    assert rank == pytest.approx([round(r) for r in rank]) and max(rank) <= 75, "25 rows of three passages, all of them"
    assert found["mrr", "a"].tops == found["mrr", "b"].tops


def test_tasks_of_other_models_are_refused(tiny_model, tmp_path):
    job = EvalJob(str(tmp_path / "run"), {"a": tiny_model}, tasks=["retrieval", "perplexity"])
    with pytest.raises(ValueError, match="retrieval an embedding model"):
        plan(job)
