"""A task: examples and a score for one completion. The same object serves evaluation and, later, as an RL reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from lib.evals.statistics import Estimate


@dataclass(frozen=True)
class Example:
    id: str
    """The same example has the same id in every evaluation: comparisons are paired by it."""
    prompt: list[dict]
    """Messages, the last one the user's."""
    reference: Any = None
    """What `score` compares with."""
    group: str = ""
    """Examples of one group are alike (a question asked in several ways): intervals draw the whole group. "": none."""


class Task(Protocol):
    name: str
    version: int | str
    """Changes with anything that changes a score; scores of different versions aren't compared."""

    def examples(self, limit: int | None = None) -> list[Example]:
        """The held-out examples, always in the same order; the first `limit` of them."""

    def score(self, example: Example, completion: str) -> dict[str, float | tuple[float, float]]:
        """{metric: number}, the headline metric first; 0 and 1 for right and wrong. (top, bottom) counts towards
        Σ tops / Σ bottoms. A metric may be about some examples only. Pure: no model, no network.

        A task whose metrics are not all better when higher names those in `lower`; one whose scoring waits for processes
        says in `at_once` how many of them.
        """


@dataclass
class Scores:
    """What a task found for one run: numbers per example; lib/evals/summary.py makes value and interval."""

    task: str
    metric: str
    run: str
    ids: list[str]
    tops: list[float]
    """One number per example. The value is their mean, or sum(tops) / sum(bottoms) where there are bottoms."""
    bottoms: list[float] | None = None
    kind: str = "mean"
    """proportion (numbers in [0, 1]: score interval), mean (studentised bootstrap), perplexity (exp of the ratio)."""
    better: str = "higher"
    """higher, lower, or "" where neither is better."""
    unit: str = ""
    versus: str | None = None
    """The run it's measured against (win rate, KL)."""
    judge: str | None = None
    """Who judged: rule, the reward run's name, or the judge's model."""
    headline: bool = False
    version: str = ""
    decoding: str = ""
    estimate: Estimate | None = None
    """Value and interval, where they are not a ratio of sums over the examples; tops is then empty."""
    groups: list[str] | None = None
    """The group of each example, where several share one."""
    chance: float | None = None
    """What guessing would get."""
