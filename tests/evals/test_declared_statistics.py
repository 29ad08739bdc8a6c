"""A task declares its metrics' statistics: they don't depend on the scores that a run happens to get."""

import pytest

from lib.evals.measures import generation
from lib.evals.registry import TASKS
from lib.evals.report import summary
from lib.evals.task import Example, Statistic


class Made:
    name, version = "made", 1
    metrics = {  # noqa: RUF012
        "right": Statistic(),
        "share": Statistic("mean"),
        "words": Statistic("ratio", better="lower"),
    }


def scored(*scores: dict) -> list[tuple[Example, dict]]:
    return [(Example(f"{i}", []), s) for i, s in enumerate(scores)]


def test_scores_of_0_and_1_are_a_proportion_only_if_the_task_declares_one():
    rows = scored(*({"words": (3.0, 4.0), "share": float(i % 2), "right": float(i % 2)} for i in range(30)))
    right, share, words = generation.metrics(Made(), rows, run="a")
    assert [s.metric for s in (right, share, words)] == ["right", "share", "words"]  # as declared, the headline first
    assert [s.headline for s in (right, share, words)] == [True, False, False]
    assert [s.better for s in (right, share, words)] == ["higher", "higher", "lower"]
    assert right.kind == "proportion" and summary.metric(right, 0).method == "Wilson"
    assert share.kind == "mean" and summary.metric(share, 0).method == "bootstrap-t"
    assert words.bottoms == [4.0] * 30 and summary.metric(words, 0).value == 0.75


def test_a_metric_may_cover_some_examples_or_none():
    (right,) = generation.metrics(Made(), scored({"right": 1.0}, {}, {"right": 0.0}), run="a")
    assert right.ids == ["0", "2"] and right.tops == [1.0, 0.0]


@pytest.mark.parametrize(
    ("score", "says"),
    [
        ({"rihgt": 1.0}, "tasks: made scores rihgt, but its metrics declare only right, share, words."),
        ({"right": (1.0, 2.0)}, "tasks: made: right is declared as a proportion, so its scores must not be pairs."),
        ({"words": 1.0}, "tasks: made: words is declared as a ratio, so its scores must be pairs."),
    ],
)
def test_a_score_that_contradicts_its_declaration_is_refused(score, says):
    with pytest.raises(ValueError) as e:
        generation.metrics(Made(), scored(score), run="a")
    assert str(e.value) == says


@pytest.mark.parametrize("name", TASKS)
def test_every_task_declares_its_metrics(name):
    assert TASKS[name](None).metrics and all(isinstance(s, Statistic) for s in TASKS[name](None).metrics.values())
