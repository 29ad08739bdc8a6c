"""Intervals and paired tests over N examples, each with one number or one (top, bottom) pair per example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
FLIPS = 9999
"""Sign patterns that sign_flips samples when there are too many to enumerate; p = 0.05 then has a standard error of 0.002."""


@dataclass(frozen=True)
class Estimate:
    value: float
    low: float | None
    """Lower end of the 95% interval; None if the n examples don't allow one, with the reason in `method`."""
    high: float | None
    n: int
    method: str


def proportion(values: Sequence[float], groups: Sequence | None = None) -> Estimate:
    """Returns the mean of numbers in [0, 1] with a score interval, which is never empty and stays within [0, 1]: Wilson's (1927,
    JASA 22) for 0s and 1s, Tango's on wins minus losses if there are ties (1/2), clustered by `groups` (lib/evals/statistics/tango.py).

    Other values between 0 and 1 vary less than the method assumes, so their interval is too wide. Raises ValueError for values
    outside [0, 1] and for an empty sequence.
    """
    import numpy as np

    from lib.evals.statistics import tango

    n, x_N = _some(values), np.asarray(values, float)
    if x_N.min() < 0 or x_N.max() > 1:
        raise ValueError(f"a proportion needs values in [0, 1], not {min(values)} to {max(values)}")
    low, high, over = tango.interval(2 * x_N - 1, groups, CONFIDENCE)
    name = "Wilson" if set(x_N) <= {0.0, 1.0} else "Tango"
    return Estimate(float(x_N.mean()), (1 + low) / 2, (1 + high) / 2, n, name + over)


def paired_proportions(a: Sequence[float], b: Sequence[float], groups: Sequence | None = None) -> Estimate:
    """Returns mean(b) − mean(a) for numbers in [0, 1] on the same examples, with Tango's score interval (lib/evals/statistics/tango.py)."""
    import numpy as np

    from lib.evals.statistics import tango

    _alike(a, b)
    differences_N = np.asarray(b, float) - np.asarray(a, float)
    low, high, over = tango.interval(differences_N, groups, CONFIDENCE)
    return Estimate(float(differences_N.mean()), low, high, _some(a), "paired, Tango" + over)


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Estimate:
    """Returns the mean with a studentised bootstrap interval (lib/evals/statistics/studentised.py)."""
    return bootstrap_ratio(values, [1.0] * len(values), seed)


def bootstrap_ratio(tops: Sequence[float], bottoms: Sequence[float], seed: int = 0) -> Estimate:
    """Returns sum(tops) / sum(bottoms), such as nats per token over documents, with a studentised bootstrap interval.

    Whole examples are resampled, so the tokens of one document stay together: the interval is clustered by document.
    """
    return _bootstrap([(tops, bottoms)], "bootstrap-t", seed)


def paired_difference(a: tuple[Sequence, Sequence], b: tuple[Sequence, Sequence], seed: int = 0) -> Estimate:
    """Returns the difference b − a of sum(tops) / sum(bottoms) on the same examples, with a studentised bootstrap interval.

    a, b: (tops, bottoms).
    """
    return _bootstrap([a, b], "paired bootstrap-t", seed)


def mcnemar(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns the two-sided mid-p-value of McNemar's exact test (1947) for the hypothesis that two models are right equally often.

    Only examples that exactly one model gets right count; the mid-p-value includes half the probability of the observed
    outcome. The plain exact test is conservative and has less power (Fagerland et al. 2013, BMC Medical Research Methodology
    13:91; docs/intervals.md). a, b: 0 or 1 per example.
    """
    return float(mid_p(*(sum(x > y for x, y in zip(*sides, strict=True)) for sides in ((a, b), (b, a)))))


def mid_p(only_a, only_b):
    """Returns McNemar's mid-p-value from the numbers of examples that only a, and only b, gets right: numbers, or arrays of one
    shape."""
    import numpy as np
    from scipy.stats import binom

    fewer, both = np.minimum(only_a, only_b), np.add(only_a, only_b)
    return 2 * binom.cdf(fewer, both, 0.5) - binom.pmf(fewer, both, 0.5)


def sign_flips(a: tuple[Sequence, Sequence], b: tuple[Sequence, Sequence], seed: int = 0) -> float:
    """Returns the two-sided p-value of a permutation test (Fisher 1935) for the hypothesis that two models score alike: each
    example's difference is then equally likely with either sign. a, b: (tops, bottoms) of the same examples, as in
    paired_difference."""
    import numpy as np

    (a_top, a_bottom), (b_top, b_bottom) = ([np.asarray(x, float) for x in side] for side in (a, b))
    _some(a_top), _some(b_top)
    shares_N = b_top / b_bottom.sum() - a_top / a_bottom.sum()  # their sum is the difference
    shares_N = shares_N[
        shares_N != 0
    ]  # zeros change no sum; few enough nonzero values allow all patterns to be enumerated
    n = len(shares_N)
    total, as_far = shares_N.sum(), abs(shares_N.sum()) - 1e-12 * np.abs(shares_N).sum()  # tolerance for rounding
    if n <= 13:  # enumerate all 8,192 patterns or fewer
        flipped_PN = np.arange(2**n)[:, None] >> np.arange(n) & 1
        return float((np.abs(total - 2 * (flipped_PN @ shares_N)) >= as_far).mean())
    rng, rows = np.random.default_rng(seed), max(1, 2_000_000 // n)
    beyond = 1  # the observed pattern counts as one
    for start in range(0, FLIPS, rows):
        patterns, bytes_each = min(rows, FLIPS - start), -(-n // 8)
        bits = np.frombuffer(rng.bytes(patterns * bytes_each), np.uint8).reshape(patterns, bytes_each)
        flipped_PN = np.unpackbits(bits, axis=1, count=n)
        beyond += int((np.abs(total - 2 * (flipped_PN @ shares_N)) >= as_far).sum())
    return beyond / (FLIPS + 1)


ELO = 400 / 2.302585092994046
"""Rating points per unit of log odds: 400 points are odds of 10 to 1 (Elo 1978)."""


def spearman(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Returns Spearman's rank correlation with the interval of Bonett and Wright (2000, Psychometrika 65): Fisher's z has the variance
    (1 + ρ²/2) / (n − 3). Raises ValueError if all numbers of a side are equal."""
    from scipy import stats

    _alike(a, b)
    n = _some(a)
    if min(len(set(a)), len(set(b))) < 2:
        raise ValueError("a rank correlation needs numbers that differ")
    rho = float(stats.spearmanr(a, b).statistic)
    if n < 4 or abs(rho) == 1:
        return Estimate(rho, None, None, n, "no interval: too few examples" if n < 4 else "no interval: all in order")
    z, far = math.atanh(rho), stats.norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return Estimate(rho, math.tanh(z - far), math.tanh(z + far), n, "Bonett and Wright")


def length_controlled(wins: Sequence[float], longer: Sequence[float]) -> Estimate:
    """Returns the length-controlled win rate: the win rate expected if both answers had equal length (Dubois et al. 2024,
    https://arxiv.org/abs/2404.04475, without the instruction term). It is σ(θ) in P(win) = σ(θ + φ tanh(d / s)), where d is how
    much longer the run's answer is than the other one, and s the standard deviation of d.

    wins: N numbers in [0, 1]; longer: N differences d. The fit is maximum likelihood with half a win and half a loss added at
    d = 0, which keeps θ finite if every comparison is won, and a prior φ ~ N(0, 1), which keeps φ finite if length decides every
    comparison. The interval uses the sandwich variance of θ.
    """
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import expit
    from scipy.stats import norm

    n, y_N, d_N = _some(wins), np.asarray(wins, float), np.asarray(longer, float)
    x_N = np.tanh(d_N / d_N.std()) if d_N.std() else np.zeros(n)
    X = np.c_[np.ones(n + 2), np.r_[x_N, 0, 0]]
    y, w = np.r_[y_N, 1, 0], np.r_[np.ones(n), 0.5, 0.5]

    def loss(b):
        z = X @ b
        return w @ (np.logaddexp(0, z) - y * z) + b[1] ** 2 / 2, X.T @ (w * (expit(z) - y)) + [0, b[1]]

    b = minimize(loss, np.zeros(2), jac=True, method="BFGS").x
    p = expit(X @ b)
    bend = np.linalg.inv((X.T * (w * p * (1 - p))) @ X + np.diag([0, 1.0]))
    half = norm.ppf((1 + CONFIDENCE) / 2) * float(np.sqrt((bend @ ((X.T * (w * (y - p)) ** 2) @ X) @ bend)[0, 0]))
    ends = (float(expit(b[0] + side)) for side in (0, -half, half))
    return Estimate(*ends, n, "logistic in length, sandwich")


def calibration(margins: Sequence[float]) -> tuple[list[float], list[float], float]:
    """Returns (mean σ(|margin|) per group, share with margin > 0 per group, expected calibration error) over 2 to 10 equally
    large groups of pairs, sorted by |margin|.

    A margin is a reward model's log odds that the chosen answer is the better one (Bradley and Terry 1952): σ(|margin|) is its
    confidence, and a positive margin is correct. A margin of 0 counts half. Calibration error: Naeini et al. 2015.
    """
    import numpy as np
    from scipy.special import expit

    margins_N = np.asarray(margins, float)
    order = np.argsort(np.abs(margins_N), kind="stable")
    groups = [margins_N[at] for at in np.array_split(order, min(_some(margins), max(2, min(10, len(margins) // 20))))]
    sure = [float(expit(np.abs(g)).mean()) for g in groups]
    right = [float(((g > 0) + 0.5 * (g == 0)).mean()) for g in groups]
    error = sum(len(g) * abs(s - r) for g, s, r in zip(groups, sure, right, strict=True)) / len(margins_N)
    return sure, right, float(error)


def bradley_terry(wins, seed: int = 0, resamples: int = 500) -> list[Estimate]:
    """Returns the ratings of m models from pairwise comparisons, with the first model at 1000 (Bradley and Terry 1952, as in the
    arena of Chiang et al. 2024).

    wins (n, m, m): the score of model a against model b on prompt i, from 0 to 1 (1/2 is a tie), NaN if they were not compared.
    Maximum likelihood with half a draw added for each compared pair, so that a model that won every comparison has a finite
    rating. Intervals bootstrap over prompts, so that the comparisons on one prompt stay together.
    """
    import numpy as np

    games_NMM = np.asarray(wins, float)
    n, models = games_NMM.shape[:2]
    met_MM = ~np.isnan(games_NMM).all(0)
    games_NMM = np.nan_to_num(games_NMM)
    rng = np.random.default_rng(seed)
    times_RN = rng.multinomial(n, [1 / n] * n, resamples)  # how often each prompt is drawn
    sums_RMM = (times_RN @ games_NMM.reshape(n, -1)).reshape(resamples, models, models)
    value = _ratings(games_NMM.sum(0) + 0.25 * met_MM)
    low, high = np.percentile(_ratings(sums_RMM + 0.25 * met_MM), [2.5, 97.5], axis=0)
    found = [Estimate(1000.0, None, None, n, "Bradley–Terry")]
    for i in range(1, len(value)):
        found.append(Estimate(float(value[i]), float(low[i]), float(high[i]), n, "Bradley–Terry, bootstrap"))
    return found


def _ratings(wins_MM):
    """Zermelo's iteration, which always converges (Hunter 2004, Annals of Statistics 32); the first model gets 1000.
    Batched: (…, M, M) → (…, M)."""
    import numpy as np

    games_MM = wins_MM + wins_MM.swapaxes(-1, -2)
    won_M = wins_MM.sum(-1)
    strength_M = np.ones(won_M.shape)
    for _ in range(10_000):
        new_M = won_M / (games_MM / (strength_M[..., :, None] + strength_M[..., None, :])).sum(-1)
        new_M /= new_M[..., :1]
        moved, strength_M = np.abs(np.log(new_M / strength_M)).max(), new_M
        if moved < 1e-9:
            break
    return 1000 + ELO * np.log(strength_M)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for a family of hypotheses (Holm 1979): rejecting below 0.05 keeps the probability of rejecting
    any true hypothesis of the family at or below 5%."""
    out, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        out[i] = highest
    return out


def detectable(e: Estimate) -> float | None:
    """Returns the smallest difference that these examples detect with 80% power: (z₀.₉₇₅ + z₀.₈) standard errors (Cohen 1988)."""
    from scipy.stats import norm

    if e.low is None or e.high is None:
        return None
    z = norm.ppf((1 + CONFIDENCE) / 2)
    return float((z + norm.ppf(0.8)) * (e.high - e.low) / (2 * z))


def apart(a: Estimate, b: Estimate) -> bool:
    """Returns whether the intervals don't overlap, which is stricter than a significant difference."""
    return None not in (a.low, b.low) and (a.high < b.low or b.high < a.low)


def _bootstrap(sides, method: str, seed: int) -> Estimate:
    import numpy as np

    from lib.evals.statistics import studentised

    _alike(*(x for side in sides for x in side))
    for x in (x for side in sides for x in side):
        n = _some(x)
    arrays = [tuple(np.asarray(x, float) for x in side) for side in sides]
    ratios = [top.sum() / bottom.sum() for top, bottom in arrays]
    value = float(ratios[-1] - (ratios[0] if len(ratios) > 1 else 0.0))
    ends = studentised.interval(arrays, CONFIDENCE, seed)
    return Estimate(value, None, None, n, ends) if isinstance(ends, str) else Estimate(value, *ends, n, method)


def _alike(*values: Sequence) -> None:
    if len(lengths := {len(x) for x in values}) > 1:
        raise ValueError(
            f"paired values are for the same examples, but there are {' and '.join(map(str, sorted(lengths)))}"
        )


def _some(values: Sequence) -> int:
    import numpy as np

    if not len(values):
        raise ValueError("there are no examples to take a mean of")
    if len(odd := np.flatnonzero(~np.isfinite(np.asarray(values, float)))):
        raise ValueError(
            f"{len(odd)} of {len(values)} scores are no finite number, the first that of example {odd[0] + 1}"
        )
    return len(values)
