"""Orders trials by the metric, and by metric and cost."""

from __future__ import annotations

import math

from tune.journal import Trial


def ranked(trials: list[Trial], metric: str, mode: str) -> list[Trial]:
    """Returns the trials that have a value, best first; of equal ones the earlier first. NaN and infinities come last."""
    sign = 1 if mode == "min" else -1
    there = [(t, t.last(metric)) for t in trials]
    known = [
        (not math.isfinite(v), sign * v if math.isfinite(v) else 0.0, t.number, t) for t, v in there if v is not None
    ]
    return [row[-1] for row in sorted(known, key=lambda row: row[:-1])]


def finished(trials: list[Trial], metric: str, mode: str) -> list[Trial]:
    """Returns the finished trials of the search that have a value, best first."""
    return ranked([t for t in trials if t.role == "search" and t.status == "finished"], metric, mode)


def best(trials: list[Trial], metric: str, mode: str) -> Trial | None:
    """Returns the finished trial of the search with the best last value; None if there is none."""
    done = finished(trials, metric, mode)
    return done[0] if done else None


def pareto(points: dict[int, tuple[float, float]], mode: str) -> set[int]:
    """Returns the keys of the Pareto-optimal points. points: {key: (cost, value)}.

    A point is optimal if no other one has at most its cost and at least its quality, with one of them strictly better.
    """
    sign = 1.0 if mode == "min" else -1.0
    at = {k: (cost, sign * value) for k, (cost, value) in points.items()}
    return {
        k for k, (c, v) in at.items() if not any(c2 <= c and v2 <= v and (c2, v2) != (c, v) for c2, v2 in at.values())
    }
