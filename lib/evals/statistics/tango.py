"""Tango's score interval: for shares of right answers, wins with ties, and differences of shares on the same examples.

Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
Statistics in Medicine 17:891; recommended by Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33:2850. It inverts
the score test, so it uses the variance under the tested difference, not the sample's: it stays valid if few or no examples
differ, and stays inside [-1, 1]. Without ties it equals Wilson's interval of a single proportion.

    python -m tests.evals.coverage     prints how often the intervals cover the true value; the table is in docs/intervals.md
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def tango(up, down, n, z: float):
    """Returns (low, high) of (up − down) / n: of n examples, `up` have the value +1, `down` −1 and the others 0. Takes numbers
    or arrays of one shape, not necessarily whole (see `interval`); z: normal quantile, 1.96 for 95%."""
    import numpy as np

    up, down, n = np.broadcast_arrays(*(np.asarray(x, float) for x in (up, down, n)))
    return _low(up, down, n, z), -_low(down, up, n, z)


def _low(up, down, n, z):
    """Finds the difference D at which the score test's statistic equals z, by bisection: the statistic falls as D rises."""
    import numpy as np

    low, high = -np.ones(up.shape), (up - down) / n
    for _ in range(50):  # halves 2 to below 1e-14
        middle = (low + high) / 2
        # Maximum-likelihood share of −1s if the difference is `middle`: the larger root of 2n q² + b q + c (Tango 1998, eq. 8).
        b = (2 * n - up + down) * middle - up - down
        c = -down * middle * (1 - middle)
        q = np.maximum(np.sqrt(np.maximum(b**2 - 8 * n * c, 0)) - b, 0) / (4 * n)
        spread = np.sqrt(np.maximum(n * (2 * q + middle * (1 - middle)), 0))
        below = up - down - n * middle > z * spread
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low[()]


def interval(values: Sequence[float], groups: Sequence[Hashable] | None, confidence: float) -> tuple[float, float, str]:
    """Returns (low, high, "" or " over 20 groups") of the mean of values in [-1, 1].

    The variance is exact for values −1, 0 and 1; values in between vary less than is assumed, so their interval is too wide.
    groups: the group of each value, if examples within a group are correlated. The counts are then divided by the design
    effect (Kish 1965): the ratio of the variance between groups to that of single examples, at least 1. The quantile is
    Student's with one degree of freedom less than there are groups (Korn and Graubard 1998). If all values are equal, the
    correlation can't be estimated, and each group counts as one example.
    """
    import numpy as np
    from scipy.stats import norm, t

    x_N, tail = np.asarray(values, float), (1 + confidence) / 2
    up, down, n, z, over = x_N.clip(0).sum(), -x_N.clip(None, 0).sum(), len(x_N), norm.ppf(tail), ""
    if groups is not None:
        _, at_N = np.unique(np.asarray(groups), return_inverse=True)
        count = at_N.max() + 1
        alone = up + down - (up - down) ** 2 / n
        together = (np.bincount(at_N, x_N - x_N.mean()) ** 2).sum() * count / max(count - 1, 1)
        effect = max(1.0, together / alone) if alone > 1e-9 and count > 1 else n / count
        z = t.ppf(tail, count - 1) if alone > 1e-9 and count > 1 else z
        up, down, n, over = up / effect, down / effect, n / effect, f" over {count} groups"
    low, high = tango(up, down, n, float(z))
    return float(low), float(high), over
