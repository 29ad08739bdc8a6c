"""How often the intervals contain the true value, and how often the verdicts based on them are false alarms.

python -m tests.evals.coverage 500      the table of docs/intervals.md: exact for shares, 500 draws each for the rest; 0: only shares

Shares are computed exactly by enumerating all tables. A simulated coverage c of N draws has a standard error of √(c (1 − c) / N):
1 point at 95% and 500 draws.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import binom, multinomial, norm

from lib.evals.statistics import intervals, paired_ranks
from lib.evals.statistics.tango import tango

Z = norm.ppf(0.975)
NEAR = 1e-9
"""An interval limit within this distance of the true value contains it, to allow for rounding."""


def single(n: int, p) -> np.ndarray:
    """Returns the probability that the interval of a share of right answers contains the true share. p: any number of true shares."""
    p_P1, k_K = np.asarray(p, float)[:, None], np.arange(n + 1)
    low_K, high_K = tango(k_K, n - k_K, n, Z)
    held_PK = (low_K <= 2 * p_P1 - 1 + NEAR) & (2 * p_P1 - 1 - NEAR <= high_K)
    return (held_PK * binom.pmf(k_K, n, p_P1)).sum(1)


def _tables(n: int):
    up, down = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    kept = up + down <= n
    return up[kept], down[kept]


class Paired:
    """Examples that only the second of two models gets right (up), or only the first (down), and all possible tables of n examples."""

    def __init__(self, n: int):
        self.n, (self.up, self.down) = n, _tables(n)
        self.low, self.high = tango(self.up, self.down, n, Z)
        fewer, both = np.minimum(self.up, self.down), self.up + self.down
        self.exact = np.minimum(1, 2 * binom.cdf(fewer, both, 0.5))
        self.mid = intervals.mid_p(self.up, self.down)

    def chance(self, up: float, down: float) -> np.ndarray:
        """Returns the probability of each table. up, down: probabilities of such examples."""
        counts = np.stack([self.up, self.down, self.n - self.up - self.down], 1)
        return multinomial.pmf(counts, self.n, [up, down, 1 - up - down])

    def covered(self, up: float, down: float) -> float:
        held = (self.low <= up - down + NEAR) & (up - down - NEAR <= self.high)
        return float(self.chance(up, down)[held].sum())

    def alarms(self, differ: float) -> tuple[float, float, float]:
        """For equally good models that differ on a share `differ` of examples, returns how often the interval excludes 0; how often it does
        and McNemar's mid-p is below 0.05, as a verdict requires; and the same with the exact p."""
        chance, out = self.chance(differ / 2, differ / 2), (self.low > NEAR) | (self.high < -NEAR)
        return tuple(float(chance[x].sum()) for x in (out, out & (self.mid < 0.05), out & (self.exact < 0.05)))


def independent(p: float, q: float, same: float = 0.0) -> tuple[float, float]:
    """Returns (up, down) of two models that are right with probability p and q, and agree as much as possible on a share `same`
    of examples."""
    alike = (max(q - p, 0), max(p - q, 0))
    return tuple(same * x + (1 - same) * y for x, y in zip(alike, ((1 - p) * q, p * (1 - q)), strict=True))


def numbers(rng):
    """{name: (function that draws n numbers, true mean)}"""
    graded = np.clip(np.random.default_rng(0).normal(8, 2, 1_000_000).round(), 1, 10).mean()
    return {
        "normal": (lambda n: rng.normal(1, 1, n), 1.0),
        "exponential": (lambda n: rng.exponential(2, n), 2.0),
        "log-normal, σ = 1": (lambda n: rng.lognormal(0, 1, n), np.exp(0.5)),
        "70% zeros, else exponential": (lambda n: np.where(rng.random(n) < 0.7, 0, rng.exponential(1, n)), 0.3),
        "95% zeros, else exponential": (lambda n: np.where(rng.random(n) < 0.95, 0, rng.exponential(1, n)), 0.05),
        "grades 1 to 10": (lambda n: np.clip(rng.normal(8, 2, n).round(), 1, 10), graded),
    }


def mean(draw, truth: float, n: int, draws: int) -> tuple[float, float]:
    """Returns (share of draws without a wrong interval, share of draws with an interval)."""
    found = [intervals.bootstrap_mean(draw(n), seed) for seed in range(draws)]
    return _held(found, truth)


def ratio(rng, n: int, draws: int, spread: float = 1.0) -> tuple[float, float]:
    """Nats per token of documents with log-normal lengths (σ = `spread`) and log-normal rates (σ = 0.5)."""
    found = []
    for seed in range(draws):
        tokens = rng.lognormal(3, spread, n).round() + 1
        found.append(intervals.bootstrap_ratio(tokens * rng.lognormal(0, 0.5, n), tokens, seed))
    return _held(found, np.exp(0.125))


def paired_ratio(rng, n: int, draws: int, spread: float = 1.0) -> tuple[float, float]:
    """Two equally good models on such documents, with rates that randomly differ by 10%."""
    found = []
    for seed in range(draws):
        tokens = rng.lognormal(3, spread, n).round() + 1
        nats = tokens * rng.lognormal(0, 0.5, n)
        found.append(intervals.paired_difference((nats, tokens), (nats * rng.lognormal(-0.005, 0.1, n), tokens), seed))
    return _held(found, 0.0)


def paired_spearman(rng, n: int, draws: int, alike: float = 0.8) -> tuple[float, float]:
    """Two equally good predictions of one score, each with a correlation of 0.5 to it; alike: correlation of their errors."""
    found = []
    for seed in range(draws):
        wanted, both = rng.normal(size=n), np.sqrt(alike) * rng.normal(size=n)
        a, b = (0.5 * wanted + np.sqrt(0.75) * (both + np.sqrt(1 - alike) * rng.normal(size=n)) for _ in "ab")
        found.append(paired_ranks.difference(a, b, wanted.round(1), seed)[0])
    return _held(found, 0.0)


def clustered(rng, groups: int, each: int, p: float, alike: float, draws: int) -> tuple[float, float]:
    """Right answers to `groups` questions, with `each` answers per question; alike: correlation of two answers to the same question."""
    names, found = np.repeat(np.arange(groups), each), []
    for _ in range(draws):
        found.append(intervals.proportion(_answers(rng, p, groups, each, alike), names))
    return _held(found, p)


def clustered_pairs(rng, groups: int, each: int, p: float, alike: float, draws: int) -> tuple[float, float]:
    """Two equally good models on such questions."""
    names, found = np.repeat(np.arange(groups), each), []
    for _ in range(draws):
        a, b = (_answers(rng, p, groups, each, alike) for _ in "ab")
        found.append(intervals.paired_proportions(a, b, names))
    return _held(found, 0.0)


def _answers(rng, p: float, groups: int, each: int, alike: float):
    level = rng.beta(p * (1 / alike - 1), (1 - p) * (1 / alike - 1), groups) if alike else np.full(groups, p)
    return (rng.random((groups, each)) < level[:, None]).astype(float).ravel()


def _held(found: list[intervals.Estimate], truth: float) -> tuple[float, float]:
    shown = [e for e in found if e.low is not None]
    wrong = sum(not e.low - NEAR <= truth <= e.high + NEAR for e in shown)
    return 1 - wrong / len(found), len(shown) / len(found)


P = np.arange(0.02, 0.981, 0.005)


def table(draws: int) -> list[tuple[str, ...]]:
    """Returns (case, n = 20, 30, 100) as shown in docs/intervals.md."""
    rng, sizes, rows = np.random.default_rng(0), (20, 30, 100), []
    at = {n: single(n, P) for n in sizes}
    rows.append(
        (
            "share of right answers, p = 0.02 … 0.98: mean (lowest)",
            *(f"{at[n].mean():.1%} ({at[n].min():.1%})" for n in sizes),
        )
    )
    pairs = {n: Paired(n) for n in sizes}
    for same in (0.0, 0.5, 0.9):
        found = {n: [pairs[n].covered(*independent(p, q, same)) for p in P[::8] for q in P[::8]] for n in sizes}
        what = f"paired difference of shares, as alike as can be on {same:.0%} of examples"
        rows.append((what, *(f"{np.mean(found[n]):.1%} ({min(found[n]):.1%})" for n in sizes)))
    ties = {
        n: [pairs[n].covered(p * (1 - t), (1 - p) * (1 - t)) for p in P[::8] for t in (0.2, 0.5, 0.8)] for n in sizes
    }
    rows.append(("wins with 20, 50 or 80% ties", *(f"{np.mean(ties[n]):.1%} ({min(ties[n]):.1%})" for n in sizes)))
    for i, name in enumerate(("interval excludes 0", "and mid-p below 0.05: the verdict", "and exact p below 0.05")):
        for differ in (0.02, 0.1, 0.3, 0.5):
            rows.append(
                (
                    f"false alarms, {differ:.0%} of examples differ: {name}",
                    *(f"{pairs[n].alarms(differ)[i]:.1%}" for n in sizes),
                )
            )
    show = lambda x: f"{x[0]:.1%}" + (f" (shown in {x[1]:.0%})" if x[1] < 1 else "")  # noqa: E731
    if not draws:
        return rows
    for name, (draw, truth) in numbers(rng).items():
        rows.append((f"mean, {name}", *(show(mean(draw, truth, n, draws)) for n in sizes)))
    for spread in (0.5, 1.0):
        rows.append((f"ratio, lengths σ = {spread}", *(show(ratio(rng, n, draws, spread)) for n in sizes)))
        rows.append(
            (f"paired ratios, lengths σ = {spread}", *(show(paired_ratio(rng, n, draws, spread)) for n in sizes))
        )
    for alike in (0.2, 0.8):
        rows.append(
            (
                f"paired rank correlations, errors correlated {alike}",
                *(show(paired_spearman(np.random.default_rng(0), n, draws, alike)) for n in sizes),
            )
        )
    for p in (0.05, 0.3, 0.9):
        for alike in (0.0, 0.3, 0.9):
            what = f"n groups of 5, p = {p}, correlation {alike}"
            rows.append((f"{what}: share", *(show(clustered(rng, n, 5, p, alike, draws)) for n in sizes)))
            rows.append((f"{what}: paired", *(show(clustered_pairs(rng, n, 5, p, alike, draws)) for n in sizes)))
    return rows


if __name__ == "__main__":
    import sys

    for row in table(int(sys.argv[1]) if sys.argv[1:] else 500):
        print("| " + " | ".join(row) + " |", flush=True)
