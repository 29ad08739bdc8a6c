"""Interval of a difference that varies in two ways at once: with the seed of training and with the held-out rows."""

from __future__ import annotations

from lib.evals.statistics.intervals import Estimate


def difference(a: list[list[float]], b: list[list[float]], weights: list[float], level: float = 0.95) -> Estimate:
    """Returns the difference b − a of two settings with its interval.

    a, b: [seeds][blocks of rows], each block's sum; weights: [blocks], each block's number of tokens, pairs or answers. The value is the
    mean over seeds of Σ differences ÷ Σ weights.

    Its variance is estimated as s²(means of the seeds) ÷ seeds + s²(means of the blocks) ÷ blocks. What varies with seed and block
    together is counted twice, so that the interval errs on the wide side (Owen 2007, The pigeonhole bootstrap, theorem 3). Degrees of
    freedom: Satterthwaite 1946. With one block, the rows count as fixed. low and high are None with one seed, from which nothing can be
    said of how much seeds matter.
    """
    import numpy as np
    from scipy import stats

    d, w = np.asarray(b, float) - np.asarray(a, float), np.asarray(weights, float)
    seeds, blocks = d.shape
    value = float(d.sum() / (seeds * w.sum()))
    rows = f"{blocks} blocks of rows" if blocks > 1 else "fixed rows"
    method = f"paired t over {seeds} seeds and {rows}"
    if seeds < 2:
        return Estimate(value, None, None, seeds, method)
    of_seeds = d.sum(axis=1) / w.sum()
    # A block's contribution to the ratio, so that blocks of unequal weight are treated as a ratio estimator treats them.
    of_blocks = (d.mean(axis=0) - value * w) * blocks / w.sum()
    parts = [(of_seeds.var(ddof=1) / seeds, seeds - 1)]
    parts += [(of_blocks.var(ddof=1) / blocks, blocks - 1)] if blocks > 1 else []
    variance = sum(v for v, _ in parts)
    if variance == 0:
        return Estimate(value, value, value, seeds, method)
    freedom = variance**2 / sum(v**2 / n for v, n in parts)
    half = float(stats.t.ppf(0.5 + level / 2, freedom) * np.sqrt(variance))
    return Estimate(value, value - half, value + half, seeds, method)
