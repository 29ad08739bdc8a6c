"""The mean of a metric over some steps in a row, with an interval: how the beginning of a run is told from its end.

Values of nearby steps are alike, so n of them say less than n independent ones. The standard error is that of n (1 − ρ) / (1 + ρ) values,
where ρ is their correlation with the value before. Both are taken about a straight line through the window, so that a steady trend isn't
noise, and ρ is estimated as r + (2 + 4r) / n, since r is too low in short series (Kendall 1954, with a line fitted). Intervals are
Welch's, at 99%.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

LEVEL = 0.99
SHORTEST = 5
"""Fewest values of a window."""


@dataclass(frozen=True)
class Window:
    measure: str
    first: int
    """Its first step."""
    last: int
    mean: float
    error: float
    """Standard error of the mean."""
    freedom: float
    """Degrees of freedom of the error; infinite: the error is known."""

    @property
    def interval(self) -> tuple[float, float]:
        return difference(Window("", 0, 0, 0.0, 0.0, math.inf), self)

    def line(self) -> str:
        """Returns "0.52 [0.48 to 0.56] in steps 1–15"."""
        low, high = self.interval
        steps = f"step {self.first}" if self.first == self.last else f"steps {self.first}–{self.last}"
        return f"{self.mean:.3g} [{low:.3g} to {high:.3g}] in {steps}"


def window(measure: str, points: Sequence[tuple[int, float]]) -> Window:
    """points: (step, value), at least three."""
    values, n = [v for _, v in points], len(points)
    mean = sum(values) / n
    middle = (n - 1) / 2
    slope = sum((i - middle) * v for i, v in enumerate(values)) / sum((i - middle) ** 2 for i in range(n))
    rest = [v - mean - slope * (i - middle) for i, v in enumerate(values)]
    spread = sum(r * r for r in rest)
    r = sum(a * b for a, b in pairwise(rest)) / spread if spread else 0.0
    rho = min(0.9, max(0.0, r + (2 + 4 * r) / n))
    independent = max(2.0, n * (1 - rho) / (1 + rho))
    error = math.sqrt(spread / (n - 2) / independent)
    freedom = max(2.0, n * (1 - rho**2) / (1 + rho**2) - 2)  # Bartlett 1935, less the line
    return Window(measure, points[0][0], points[-1][0], mean, error, freedom)


def ends(measure: str, points: Sequence[tuple[int, float]]) -> tuple[Window, Window] | None:
    """Returns the first tenth and the last quarter of the values, of at least SHORTEST each. None: there are too few.

    The start is short because a fault may take only a few steps.
    """
    if len(points) < 2 * SHORTEST:
        return None
    return window(measure, points[: start(points)]), window(measure, points[-end(points) :])


def start(points: Sequence) -> int:
    """Returns the number of values at the start."""
    return max(SHORTEST, len(points) // 10)


def end(points: Sequence) -> int:
    """Returns the number of values at the end."""
    return max(SHORTEST, len(points) // 4)


def difference(a: Window, b: Window, factor: float = 1.0, level: float = LEVEL) -> tuple[float, float]:
    """Returns the interval of b's mean − factor × a's."""
    from scipy.stats import t

    found, parts = b.mean - factor * a.mean, ((b.error, b.freedom), (factor * a.error, a.freedom))
    variance = sum(error**2 for error, _ in parts)
    if not variance:
        return found, found
    uncertain = sum(error**4 / freedom for error, freedom in parts)
    freedom = variance**2 / uncertain if uncertain else math.inf
    reach = float(t.ppf((1 + level) / 2, freedom)) * math.sqrt(variance)
    return found - reach, found + reach
