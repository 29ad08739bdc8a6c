"""Orders trials by the metric."""

from __future__ import annotations

from tune.journal import Trial


def ranked(trials: list[Trial], metric: str, mode: str) -> list[Trial]:
    """Returns the trials that have a value, best first; of equal ones the earlier first."""
    sign = 1 if mode == "min" else -1
    there = [t for t in trials if t.last(metric) is not None]
    return sorted(there, key=lambda t: (sign * (t.last(metric) or 0.0), t.number))


def best(trials: list[Trial], metric: str, mode: str) -> Trial | None:
    """Returns the finished trial of the search with the best last value; None if there is none."""
    done = ranked([t for t in trials if t.role == "search" and t.status == "finished"], metric, mode)
    return done[0] if done else None
