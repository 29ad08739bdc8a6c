"""The data behind the plots: the heat map's colours, the frontier, calibration, and the variation of answers."""

import math
import random

import pytest

from lib.evals.measures import diversity
from lib.evals.report import panels, plots, render
from lib.evals.report.schema import Metric
from lib.evals.statistics import intervals
from tests.evals import handwritten


def metric(task, run, value, metric="exact", decoding="greedy", kind="proportion", better="higher", **rest) -> Metric:
    return Metric(task, metric, run, value, value, value, 10, "", better=better, kind=kind, decoding=decoding, **rest)


@pytest.fixture
def report():
    found = handwritten.report()
    found.metrics, found.calibrations = [], []
    return found


def test_heat_map_is_the_value_of_a_proportion_and_the_place_of_a_number(report):
    report.metrics = [metric("a", r, v, headline=True) for r, v in (("base", 0.1), ("sft", 0.6))]
    report.metrics += [
        metric("perplexity", r, v, "perplexity", kind="perplexity", better="lower", headline=True)
        for r, v in (("base", 20.0), ("sft", 12.0), ("dpo", 10.0))
    ]
    first, second = panels.heat_map(report)
    assert {run: s for run, (_, s) in first["cells"].items()} == {"base": 0.1, "sft": 0.6}
    assert {run: s for run, (_, s) in second["cells"].items()} == {"base": 0.0, "sft": 0.8, "dpo": 1.0}


def test_at_a_glance_has_no_row_or_column_without_a_number(report):
    """The first row is of two runs, another of the reward run and a judge, which have no other score."""
    report.metrics = [metric("a", r, v, headline=True) for r, v in (("base", 0.1), ("sft", 0.6))]
    report.metrics += [metric("b", r, v, headline=True) for r, v in (("sft", 0.1), ("dpo", 0.6))]
    report.metrics += [
        metric("preference_accuracy", r, 0.7, "preference_accuracy", headline=True) for r in ("reward", "referee")
    ]
    assert [list(row["cells"]) for row in panels.heat_map(report)] == [["base", "sft"], ["sft", "dpo"]]
    page = render.html(report)
    table = page[page.index('<table class="heat') : page.index("The deeper, the better")]
    assert table.count("<th>") == 1 + 3 and [r.count("--s:") for r in table.split("<tr>")[2:]] == [2, 2]


def test_win_rates_of_two_tasks_have_titles_of_their_own(report):
    shared = {
        "metric": "win_rate",
        "decoding": "",
        "headline": True,
        "versus": "sft",
        "judge": "referee",
        "chance": 0.5,
    }
    report.metrics = [metric(task, "dpo", 0.5, **shared) for task in ("win_rate", "mt_bench")]
    assert [p["title"] for p in panels.scores(report)] == ["dpo wins over sft", "mt_bench: dpo wins over sft"]


def test_frontiers_need_two_points_and_include_the_price(report):
    assert panels.frontiers(report) == []
    report.settings["usd_per_hour"] = 0.36
    for decoding, value, seconds in (("greedy", 0.5, 1.0), ("best_of_4", 0.7, 4.0)):
        cost = metric("demo", "sft", seconds, "seconds_per_answer", decoding, "mean", "lower")
        report.metrics += [metric("demo", "sft", value, decoding=decoding, headline=True), cost]
    (panel,) = panels.frontiers(report)
    assert "$0.1 per 1,000" in panel["note"] and "sft best_of_4: 0.7 in 4 s" in panel["svg"]


def test_the_frontier_leaves_out_what_another_beats():
    """Of three points the slow and bad one is not on the line, so the line has two ends."""
    points = [
        ("a", 1.0, metric("t", "a", 0.5), 0),
        ("b", 2.0, metric("t", "b", 0.8), 1),
        ("c", 3.0, metric("t", "c", 0.6), 2),
    ]
    drawn = []
    from matplotlib.axes import Axes

    original = Axes.plot

    def plot(self, *args, **kwargs):
        drawn.append((args, kwargs))
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(Axes, "plot", plot)
        plots.frontier(points, True)
        assert drawn[-1][0] == ((1.0, 2.0), (0.5, 0.8))
        plots.frontier(points, False)
        assert drawn[-1][0] == ((1.0,), (0.5,))


def test_refusals_need_both_sides_of_two_runs(report):
    report.metrics = [metric("xstest", "sft", 0.2, "over_refusal"), metric("xstest", "sft", 0.4, "compliance")]
    assert panels.refusals(report) == []
    report.metrics += [metric("xstest", "dpo", 0.1, "over_refusal"), metric("xstest", "dpo", 0.6, "compliance")]
    assert "sft greedy: refuses 20%, answers 40%" in panels.refusals(report)[0]["svg"]


def test_calibration_of_a_calibrated_model_and_of_a_boaster():
    rng = random.Random(0)
    size = [abs(rng.gauss(0, 2)) for _ in range(20_000)]
    fair = [m if rng.random() < 1 / (1 + math.exp(-m)) else -m for m in size]
    sure, right, error = intervals.calibration(fair)
    assert error < 0.015 and sure == sorted(sure) and all(abs(s - r) < 0.04 for s, r in zip(sure, right, strict=True))
    assert intervals.calibration([5 * m for m in fair])[2] > 0.1
    assert intervals.calibration([0.0, 1.0])[1] == [0.5, 1.0]


def test_diversity():
    same, other = ["a b c d"] * 4, ["a b c d", "e f g h", "i j k l"]
    assert diversity.distinct(same, 1) == 4 / 16 and diversity.distinct(other, 2) == 1.0
    assert diversity.distinct(["", "a"], 2) is None
    assert diversity.self_bleu(same, 0) == pytest.approx(100) and diversity.self_bleu(other, 0) < 1
    assert diversity.self_bleu(["a", " "], 0) is None
