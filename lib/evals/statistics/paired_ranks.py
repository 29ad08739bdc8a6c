"""The difference of two rank correlations on the same N examples, by a percentile bootstrap (Efron 1979)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from lib.evals.statistics.intervals import CONFIDENCE, Estimate, spearman

RESAMPLES = 2000
AT_ONCE = 500_000
"""Numbers that are ranked at a time."""


def difference(
    a: Sequence[float], b: Sequence[float], wanted: Sequence[float], seed: int = 0
) -> tuple[Estimate, float]:
    """Returns (ρ(b, wanted) − ρ(a, wanted), Spearman's correlations, with a 95% interval; the p-value of the hypothesis that it is 0: the
    smallest level at which such an interval excludes 0 (Efron and Tibshirani 1993, section 15.4)).

    Examples are resampled whole, and ranked again in each resample. The interval's coverage is in docs/intervals.md. Raises ValueError as
    spearman() does.
    """
    import numpy as np
    from scipy import stats

    n, value = len(wanted), spearman(b, wanted).value - spearman(a, wanted).value

    def standard(x, axis):
        ranks = stats.rankdata(x, axis=axis)
        ranks = ranks - ranks.mean(axis, keepdims=True)
        return ranks / ranks.std(axis, keepdims=True)

    def statistic(a_N, b_N, wanted_N, axis=-1):
        return ((standard(b_N, axis) - standard(a_N, axis)) * standard(wanted_N, axis)).mean(axis)

    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # all resamples are 0 if the runs rank alike
        found = stats.bootstrap(
            (a, b, wanted), statistic, paired=True, vectorized=True, method="percentile", n_resamples=RESAMPLES,
            batch=max(1, AT_ONCE // n), confidence_level=CONFIDENCE, rng=np.random.default_rng(seed),
        )  # fmt: skip
    drawn_R = found.bootstrap_distribution
    if not np.isfinite(drawn_R).all():
        return Estimate(value, None, None, n, "no interval: some resamples hold equal numbers only"), 1.0
    fewest = int(min((drawn_R <= 0).sum(), (drawn_R >= 0).sum()))
    low, high = (float(x) for x in found.confidence_interval)
    e = Estimate(value, low, high, n, "paired bootstrap, percentile")
    return e, min(1.0, 2 * (1 + fewest) / (RESAMPLES + 1))
