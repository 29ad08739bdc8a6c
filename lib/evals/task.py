"""A task: examples, and a score for one completion. The same object can serve evaluation and as an RL reward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, Protocol

from lib.evals.statistics.intervals import Estimate


@dataclass(frozen=True)
class Example:
    id: str
    """Identical for the same example in every evaluation, so that comparisons can be paired by it."""
    prompt: list[dict]
    """Messages; the last one is the user's."""
    reference: Any = None
    """What `score` compares the completion with."""
    group: str = ""
    """Key shared by related examples (such as one question in several wordings); intervals treat a group as one unit. "": no group."""


@dataclass(frozen=True)
class Statistic:
    """How a metric's scores, one per example, become its value. It decides the interval and the paired test, so a task declares
    it: a run whose every score happens to be 0 or 1 must be treated as the other runs are."""

    kind: Literal["proportion", "mean", "ratio", "perplexity", "spearman"] = "proportion"
    """proportion: mean of numbers in [0, 1], with a score interval. mean: mean of any numbers, with a studentised bootstrap. ratio:
    Σ tops / Σ bottoms, with the same bootstrap. perplexity: exp of such a ratio. spearman: the rank correlation of tops and bottoms."""
    better: Literal["higher", "lower", ""] = "higher"
    """"": neither is better."""


class Task(Protocol):
    name: str
    version: int | str
    """Changes whenever scores would change; scores of different versions are not compared."""
    metrics: Mapping[str, Statistic]
    """Every metric that `score` may return, the headline metric first."""

    def examples(self, limit: int | None = None) -> list[Example]:
        """Returns the first `limit` held-out examples (None: all), always in the same order."""

    def score(self, example: Example, completion: str) -> dict[str, float | tuple[float, float]]:
        """Returns {metric: number}; right is 1 and wrong is 0. A ratio's score is a pair (top, bottom). A metric may cover only
        some of the examples. Pure: uses no model and no network.

        A task may have an attribute `at_once`: how many answers may be scored at the same time, for scoring that waits for
        subprocesses; a method `reference(answer) -> Any`: what `score` compares with, from the text of a right answer (ValueError if it
        holds none), so that training rows can be scored too; and a method `final(completion) -> str | None`: the final answer in one
        form, so that samples can vote for it.
        """


@dataclass
class Measured:
    """What was measured: the fields that a metric's scores (Scores) and its value (Metric, lib/evals/report/schema.py) share."""

    task: str
    metric: str
    run: str
    _: KW_ONLY
    kind: str = "mean"
    """As in Statistic."""
    better: str = "higher"
    """As in Statistic."""
    unit: str = ""
    versus: str | None = None
    """The run this one is measured against (win rate, KL)."""
    judge: str | None = None
    """The judge: rule, the reward run's name, or the judge's model name."""
    headline: bool = False
    version: str = ""
    decoding: str = ""
    chance: float | None = None
    """Expected score of random guessing, if known: 1 / number of choices, or 1/2 for two answers."""


@dataclass
class Scores(Measured):
    """The per-example numbers of one metric for one run; lib/evals/report/summary.py computes the value and its interval."""

    ids: list[str]
    tops: list[float]
    """One number per example. The value is their mean, or sum(tops) / sum(bottoms) if bottoms are given, unless `kind` says otherwise."""
    bottoms: list[float] | None = None
    _: KW_ONLY
    estimate: Estimate | None = None
    """Value and interval, for metrics that are not a ratio of sums over the examples; tops is then empty."""
    groups: list[str] | None = None
    """The group of each example, if any examples share one."""
