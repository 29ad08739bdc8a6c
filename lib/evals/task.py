"""A task: examples, and a score for one completion. The same object can serve evaluation and as an RL reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

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


class Task(Protocol):
    name: str
    version: int | str
    """Changes whenever scores would change; scores of different versions are not compared."""

    def examples(self, limit: int | None = None) -> list[Example]:
        """Returns the first `limit` held-out examples (None: all), always in the same order."""

    def score(self, example: Example, completion: str) -> dict[str, float | tuple[float, float]]:
        """Returns {metric: number}, the headline metric first. Right is 1 and wrong is 0; a pair (top, bottom) contributes to
        Σ tops / Σ bottoms. A metric may cover only some of the examples. Pure: uses no model and no network.

        Optional attributes of a task: `lower` names the metrics for which lower is better; `at_once` is how many answers
        may be scored at the same time, for scoring that waits for subprocesses.
        """


@dataclass
class Scores:
    """The per-example numbers of one metric for one run; lib/evals/report/summary.py computes the value and its interval."""

    task: str
    metric: str
    run: str
    ids: list[str]
    tops: list[float]
    """One number per example. The value is their mean, or sum(tops) / sum(bottoms) if bottoms are given."""
    bottoms: list[float] | None = None
    kind: str = "mean"
    """proportion (numbers in [0, 1]: score interval), mean (studentised bootstrap), perplexity (exp of the ratio)."""
    better: str = "higher"
    """higher, lower, or "" if neither is better."""
    unit: str = ""
    versus: str | None = None
    """The run this one is measured against (win rate, KL)."""
    judge: str | None = None
    """The judge: rule, the reward run's name, or the judge's model name."""
    headline: bool = False
    version: str = ""
    decoding: str = ""
    estimate: Estimate | None = None
    """Value and interval, for metrics that are not a ratio of sums over the examples; tops is then empty."""
    groups: list[str] | None = None
    """The group of each example, if any examples share one."""
    chance: float | None = None
    """The expected value for random guessing."""
