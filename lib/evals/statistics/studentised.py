"""The studentised bootstrap (bootstrap-t): intervals for means and ratios of sums of numbers with no known bounds.

Efron 1982; Hall 1988, "Theoretical comparison of bootstrap confidence intervals", Annals of Statistics 16:927: its errors
are of order 1/n, as BCa's are, but unlike BCa it also allows for the uncertainty of the variance. The standard error is the
jackknife's, recomputed for each resample. Neither end is closer to the value than Student's t would put it: if a few long
documents dominate a ratio, resamples represent its tails too thinly.

    python -m tests.evals.coverage     prints how often the intervals cover the true value; the table is in docs/intervals.md
"""

from __future__ import annotations

RESAMPLES = 2000
NO_INTERVAL = "no interval: "
"""Prefix of the reason why there is no interval."""
NEEDED = 5
"""Number of examples that must differ from the most common value. With fewer, more resamples than the 2.5% of a tail may hold
only that value, and no method gives bounds without bounds on the values themselves (Bahadur and Savage 1956)."""
AT_ONCE = 2_000_000
"""Numbers drawn at a time: about five arrays of 16 MB each."""


def interval(sides, confidence: float, seed: int) -> tuple[float, float] | str:
    """Returns (low, high) of Σ tops / Σ bottoms over n examples, or, with two sides, of the second ratio minus the first. Returns
    the reason if the examples can't give an interval. sides: [(tops, bottoms)], arrays of shape (n,)."""
    import numpy as np
    from scipy.stats import t as student

    counted = np.any([bottom != 0 for _, bottom in sides], axis=0)  # an example without tokens carries no information
    sides = [(top[counted], bottom[counted]) for top, bottom in sides]
    n = len(sides[0][0])
    if not n:
        return f"{NO_INTERVAL}no example has a weight above 0"
    rates_N = sum(sign * top / np.where(bottom, bottom, 1) for sign, (top, bottom) in _signed(sides))
    scale = max(float(np.abs(rates_N).max()), 1e-300)
    common = int(np.unique(np.round(rates_N / scale, 9), return_counts=True)[1].max())
    if n - common < NEEDED:
        return f"{NO_INTERVAL}{n - common} of {n} values differ from the most common one, {NEEDED} are needed"
    value, error = (float(x[0]) for x in _value_and_error(sides, np.arange(n)[None]))
    rng, t_R = np.random.default_rng(seed), []
    while (left := RESAMPLES - sum(map(len, t_R))) > 0:
        drawn = rng.integers(0, n, (min(left, max(1, AT_ONCE // n)), n))
        values, errors = _value_and_error(sides, drawn)
        t_R.append((values - value) / np.maximum(errors, 1e-9 * error))
    ends = np.quantile(np.concatenate(t_R), [(1 + confidence) / 2, (1 - confidence) / 2])
    if not np.abs(ends).max() <= 1e6:  # NaN if a resample divides by 0
        return f"{NO_INTERVAL}too many resamples of the {n} values are of a single one"
    least = student.ppf((1 + confidence) / 2, n - 1)
    low, high = float(value - max(ends[0], least) * error), float(value - min(ends[1], -least) * error)
    if len(sides) > 1:
        return low, high
    return max(low, float(rates_N.min())), min(high, float(rates_N.max()))  # a mean lies within the range of its values


def _signed(sides):
    return zip((1,) if len(sides) == 1 else (-1, 1), sides, strict=True)


def _value_and_error(sides, drawn_RN):
    """Returns the statistic and its jackknife standard error in each of R resamples, given by the indices of their examples.
    Leaving out example i changes a ratio T/B by −(tᵢ − T/B bᵢ) / (B − bᵢ)."""
    import numpy as np

    n = drawn_RN.shape[1]
    value, moved_RN = 0.0, 0.0
    for sign, (top, bottom) in _signed(sides):
        t_RN, b_RN = top[drawn_RN], bottom[drawn_RN]
        sum_R1 = b_RN.sum(1, keepdims=True)
        ratio_R1 = t_RN.sum(1, keepdims=True) / sum_R1
        value = value + sign * ratio_R1[:, 0]
        moved_RN = moved_RN + sign * (t_RN - ratio_R1 * b_RN) / (sum_R1 - b_RN)
    moved_RN = moved_RN - moved_RN.mean(1, keepdims=True)
    return value, np.sqrt((n - 1) / n * (moved_RN**2).sum(1))
