"""What random search would have given: the expected best of k random trials (Dodge et al. 2019, arXiv:1909.03004)."""

from __future__ import annotations

import math

from tune.journal import Trial
from tune.settings import Settings

STARTUP = 10
"""Optuna's n_startup_trials: as many trials of a TPE search are drawn at random before the first proposal."""
FEWEST = 5
"""Fewer random trials than this give no estimate."""


def drawn_at_random(trials: list[Trial], settings: Settings) -> list[Trial]:
    """Returns the trials of the search whose settings were independent random draws: all of random, the first 10 of optuna, none of grid or
    of population based training. None either if stopped trials have no value of the metric, since only good ones would be left."""
    if settings.scheduler == "pbt" or (
        settings.curve != settings.metric and any(t.status == "stopped" for t in trials)
    ):
        return []
    searched = sorted((t for t in trials if t.role == "search"), key=lambda t: t.number)
    return searched[: {"random": len(searched), "optuna": STARTUP, "grid": 0}[settings.search]]


def values(trials: list[Trial], metric: str) -> list[float]:
    """Returns the last finite value of each finished or stopped trial."""
    found = (t.last(metric) for t in trials if t.status in ("finished", "stopped"))
    return [v for v in found if v is not None and math.isfinite(v)]


def expected_best(values: list[float], mode: str) -> list[float]:
    """Returns, for k = 1 … n, the expected best of k draws with replacement from the n values:

    Σᵢ v₍ᵢ₎ · ((i/n)ᵏ − ((i−1)/n)ᵏ), with v₍₁₎ … v₍ₙ₎ from worst to best (Dodge et al. 2019, section 3).

    It is biased towards worse values as k approaches n (Tang et al. 2020, arXiv:2004.13705).
    """
    n = len(values)
    ordered = sorted(values, reverse=mode == "min")
    return [sum(v * ((i / n) ** k - ((i - 1) / n) ** k) for i, v in enumerate(ordered, 1)) for k in range(1, n + 1)]


def best_so_far(trials: list[Trial], metric: str, mode: str) -> list[float | None]:
    """Returns the best last value among the first k trials of the search, for k = 1 … their number; None as long as there is none."""
    best, out = None, list[float | None]()
    for t in sorted((t for t in trials if t.role == "search"), key=lambda t: t.number):
        for v in values([t], metric):
            best = v if best is None else (min if mode == "min" else max)(best, v)
        out.append(best)
    return out
