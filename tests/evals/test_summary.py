"""From numbers per example to metrics, comparisons and verdicts, with hand-written numbers."""

import math

import pytest

from lib.evals.report import formatting, summary
from lib.evals.report.schema import Metric
from lib.evals.task import Scores

IDS = [f"e{i}" for i in range(200)]


def right(run: str, n: int, task: str = "demo") -> Scores:
    return Scores(task, "exact", run, IDS, [1.0] * n + [0.0] * (200 - n), kind="proportion", headline=True)


def judged(runs: list[str], scores: list[Scores], floor: float = 0.65, ceiling: float = 5.0) -> list:
    metrics = [summary.metric(s, 0) for s in scores]
    return summary.verdicts(runs, metrics, summary.comparisons(scores, 0), floor, ceiling)


def test_an_improvement_is_stated_with_n_interval_and_verdict():
    (v,) = judged(["base", "sft"], [right("base", 6), right("sft", 142)])
    assert (v.claim, v.holds, v.figure, v.n) == ("sft is above base on demo, exact", True, "3% → 71%", 200)
    assert v.evidence == "3% [1–6] → 71% [64–77], n=200: intervals apart, p < 0.001 (Holm)"


def test_no_difference_is_a_result():
    a, b = right("a", 100), right("b", 100)
    b.tops = b.tops[::-1]  # as many right, but other examples
    (v,) = judged(["a", "b"], [a, b])
    assert v.holds is None and v.claim == "b and a are not told apart on demo, exact"
    assert v.evidence.endswith("p = 1.000 (Holm); 200 examples show differences of 20 points and more")


def test_three_more_right_of_200_are_not_told_apart():
    """Three of a hundred resamples contain none of the three: a bootstrap interval would begin above 0."""
    (c,) = summary.comparisons([right("a", 0), right("b", 3)], 0)
    assert c.low < 0 < c.high and c.method == "paired, Tango" and c.p == 0.125


def test_without_an_interval_p_alone_decides():
    """All differences are equal: there is nothing to resample, but chance can't explain it."""
    a, b = (Scores("t", "slots", run, IDS, [x] * 200, headline=True) for run, x in (("a", 0.25), ("b", 0.5)))
    (v,) = judged(["a", "b"], [a, b])
    assert v.holds is True and v.evidence.startswith("0.25 → 0.5, n=200: paired difference +0.25, p < 0.001")


def test_worse_is_said():
    (v,) = judged(["a", "b"], [right("a", 150), right("b", 90)])
    assert (v.claim, v.holds) == ("b is below a on demo, exact", False)


def test_only_neighbours_get_a_verdict_but_all_are_compared():
    three = [right("a", 10), right("b", 100), right("c", 150)]
    assert [v.claim.split(" on ")[0] for v in judged(["a", "b", "c"], three)] == ["b is above a", "c is above b"]
    assert [(c.a, c.b) for c in summary.comparisons(three, 0)] == [("a", "b"), ("a", "c"), ("b", "c")]


def test_other_examples_are_not_compared():
    b = right("b", 100)
    b.ids = [f"x{i}" for i in range(200)]
    assert summary.comparisons([right("a", 10), b], 0) == []


@pytest.mark.parametrize(("n", "holds"), [(170, True), (135, None), (90, False)])
def test_reward_accuracy_against_its_floor(n, holds):
    s = Scores(
        "preference_accuracy", "preference_accuracy", "reward", IDS, [1.0] * n + [0.0] * (200 - n), kind="proportion"
    )
    assert [v.holds for v in judged([], [s])] == [holds]


@pytest.mark.parametrize(("wins", "holds"), [(130, True), (105, None), (60, False)])
def test_win_rate_against_a_half(wins, holds):
    s = Scores(
        "win_rate",
        "win_rate",
        "dpo",
        IDS,
        [1.0] * wins + [0.0] * (200 - wins),
        kind="proportion",
        versus="sft",
        judge="rule",
    )
    (v,) = judged(["sft", "dpo"], [s])
    assert v.holds is holds and ("excludes 50%" in v.evidence) == (holds is not None)


@pytest.mark.parametrize(("nats", "holds"), [(2.0, True), (5.0, None), (9.0, False)])
def test_kl_against_its_ceiling(nats, holds):
    s = Scores("kl", "kl", "dpo", IDS, [nats + (-1) ** i for i in range(200)], better="lower", versus="sft")
    (v,) = judged(["sft", "dpo"], [s])
    assert v.holds is holds and v.figure == f"{nats:g} nats"


def test_perplexity_is_exp_of_nats_per_token():
    s = Scores(
        "perplexity",
        "perplexity",
        "a",
        IDS[:30],
        [2.0, 4.0, 9.0] * 10,
        [1.0, 2.0, 2.0] * 10,
        kind="perplexity",
        better="lower",
    )
    m = summary.metric(s, 0)
    assert m.value == pytest.approx(math.exp(3)) and m.low < m.value < m.high and m.n == 30


def test_lower_perplexity_is_better():
    a = Scores(
        "perplexity",
        "perplexity",
        "a",
        IDS,
        [3.0 + i % 5 for i in range(200)],
        [1.0] * 200,
        kind="perplexity",
        better="lower",
        headline=True,
    )
    b = Scores(
        "perplexity",
        "perplexity",
        "b",
        IDS,
        [2.0 + i % 5 for i in range(200)],
        [1.0] * 200,
        kind="perplexity",
        better="lower",
        headline=True,
    )
    b.tops[0] += 0.5
    (v,) = judged(["a", "b"], [a, b])
    assert (v.claim, v.holds) == ("b is below a on perplexity", True)
    assert judged(["b", "a"], [b, a])[0].holds is False


def test_shown_numbers():
    m = Metric("t", "m", "r", 0.714, 0.65, 0.772, 200, "Wilson", kind="proportion")
    assert formatting.show(m) == "71.4% [65–77]"
    assert formatting.show(Metric("t", "m", "r", 4.2137, 4.02, 4.4, 200, "bootstrap")) == "4.21 [4.02–4.4]"
    assert formatting.show(Metric("t", "m", "r", 1.0, None, None, 20, "bootstrap")) == "1"
    assert [formatting.number(x) for x in (0, 0.00042, 12345.6, 0.5)] == ["0", "4.2e-04", "12,346", "0.5"]


@pytest.mark.parametrize(
    ("right", "n", "shown"),
    [(17, 40, "42.5% [29–58]"), (1, 8, "12.5% [2–47]"), (57, 200, "28.5% [23–35]"), (3, 3, "100% [44–100]")],
)
def test_a_half_percent_is_shown(right, n, shown):
    """17 of 40 are 42.5%; the interval is so wide that its limits stay whole numbers."""
    s = Scores("t", "m", "r", IDS[:n], [1.0] * right + [0.0] * (n - right), kind="proportion")
    assert formatting.show(summary.metric(s, 0)) == shown


def test_narrow_intervals_have_a_decimal():
    m = Metric("t", "m", "r", 0.42449, 0.41749, 0.43151, 20_000, "Wilson", kind="proportion")
    assert formatting.show(m) == "42.4% [41.7–43.2]"


def test_durations():
    """Short ones differ; 119.6 s are two minutes, not one minute and sixty seconds."""
    assert [formatting.duration(s) for s in (0.043, 0.3, 3.14, 42.2, 99.9, 119.6, 185)] == [
        "0.04 s", "0.3 s", "3.1 s", "42 s", "1 min 40 s", "2 min 00 s", "3 min 05 s",
    ]  # fmt: skip
    assert formatting.duration(0) == "0 s"
