"""Intervals against published values and by simulation."""

import math
import random

import numpy as np
import pytest

from lib.evals import statistics


def test_wilson_is_the_published_interval():
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    for right, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        e = statistics.wilson([1.0] * right + [0.0] * (n - right))
        assert (round(e.low, 4), round(e.high, 4), e.n) == (low, high, n)
        assert e.value == right / n


def test_wilson_covers():
    """95% of the intervals contain the truth, on average over the truths an evaluation meets."""
    rng, hits = np.random.default_rng(0), []
    for p in (0.05, 0.3, 0.5, 0.8):
        for _ in range(500):
            e = statistics.wilson((rng.random(100) < p).astype(float))
            hits.append(e.low <= p <= e.high)
    assert 0.935 < np.mean(hits) < 0.97


def test_wilson_with_ties_is_on_the_wide_side():
    rng, hits = np.random.default_rng(1), []
    for _ in range(1000):
        e = statistics.wilson(rng.choice([0.0, 0.5, 1.0], size=100, p=[0.3, 0.4, 0.3]))
        hits.append(e.low <= 0.5 <= e.high)
    assert np.mean(hits) > 0.95


def test_wilson_refuses_what_is_no_proportion():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        statistics.wilson([0.2, 1.3])
    with pytest.raises(ValueError, match="no examples"):
        statistics.wilson([])


def test_bootstrap_mean_covers():
    rng, hits = np.random.default_rng(2), []
    for i in range(200):
        e = statistics.bootstrap_mean(rng.exponential(2.0, 80), seed=i)
        hits.append(e.low <= 2.0 <= e.high)
    assert 0.90 < np.mean(hits) < 0.985


def test_bootstrap_agrees_with_the_normal_interval_and_its_seed():
    values = np.random.default_rng(3).normal(5.0, 1.0, 400)
    e = statistics.bootstrap_mean(values, seed=7)
    half = 1.96 * values.std(ddof=1) / 20
    assert e.value == pytest.approx(values.mean())
    assert e.low == pytest.approx(values.mean() - half, abs=0.01)
    assert e.high == pytest.approx(values.mean() + half, abs=0.01)
    assert e == statistics.bootstrap_mean(values, seed=7)


def test_ratio_weighs_documents_by_their_length():
    """3 nats over 1 token and 3 over 5 tokens: 1 nat per token, not the mean of 3 and 0.6."""
    assert statistics.bootstrap_ratio([3.0, 3.0], [1.0, 5.0]).value == 1.0


def test_what_has_no_interval():
    assert statistics.bootstrap_mean([2.0]).low is None
    same = statistics.bootstrap_mean([2.0] * 30)
    assert (same.value, same.low, same.high, same.n) == (2.0, None, None, 30)


def test_pairing_takes_out_the_difficulty_of_the_examples():
    rng = np.random.default_rng(4)
    hard = rng.normal(0, 10, 100)
    a, b = hard + rng.normal(0, 0.1, 100), hard + 0.5 + rng.normal(0, 0.1, 100)
    one = [1.0] * 100
    e = statistics.paired_difference((a, one), (b, one))
    assert 0.45 < e.low < e.value < e.high < 0.55
    assert not statistics.apart(statistics.bootstrap_mean(a), statistics.bootstrap_mean(b))


def test_paired_values_must_match():
    with pytest.raises(ValueError, match="same examples"):
        statistics.paired_difference(([1, 2], [1, 1]), ([1], [1]))


def test_noise_is_called_noise():
    """Two equally good models: the paired interval excludes zero, and McNemar's p is below 0.05, 5% of the time."""
    rng, intervals, p_values = np.random.default_rng(5), [], []
    for i in range(200):
        a, b = (rng.random((2, 120)) < 0.4).astype(float)
        e = statistics.paired_difference((a, [1.0] * 120), (b, [1.0] * 120), seed=i)
        intervals.append(not e.low <= 0 <= e.high)
        p_values.append(statistics.mcnemar(a, b) < 0.05)
    assert np.mean(intervals) <= 0.085
    assert np.mean(p_values) <= 0.06


def test_mcnemar_exact():
    """10 against 2 discordant examples: 2 · (C(12,0) + C(12,1) + C(12,2)) / 2¹² = 158 / 4096."""
    a, b = [0.0] * 10 + [1.0] * 2 + [1.0] * 5, [1.0] * 10 + [0.0] * 2 + [1.0] * 5
    assert statistics.mcnemar(a, b) == pytest.approx(158 / 4096)
    assert statistics.mcnemar(a, a) == 1.0


def test_apart():
    low, high = statistics.wilson([0.0] * 95 + [1.0] * 5), statistics.wilson([1.0] * 70 + [0.0] * 30)
    assert statistics.apart(low, high) and statistics.apart(high, low) and not statistics.apart(low, low)


def test_sign_flips_is_exact_for_few_examples():
    """Ten differences of +1: of 1,024 sign patterns the two with all signs alike are as far out."""
    one = [1.0] * 10
    assert statistics.sign_flips(([0.0] * 10, one), ([1.0] * 10, one)) == pytest.approx(2 / 1024)
    assert statistics.sign_flips(([0.5] * 10, one), ([0.5] * 10, one)) == 1.0


def test_ratings_are_the_odds():
    """Two models, 30 wins to 10: odds of 3 (with half a draw on each side, 30.25 to 10.25)."""
    wins = np.full((40, 2, 2), np.nan)
    wins[:30, 0, 1], wins[:30, 1, 0] = 0.0, 1.0
    wins[30:, 0, 1], wins[30:, 1, 0] = 1.0, 0.0
    first, second = statistics.bradley_terry(wins)
    assert first.value == 1000 and second.value == pytest.approx(1000 + 400 * np.log10(30.25 / 10.25))
    assert second.low < second.value < second.high


def test_ratings_cover_and_a_model_that_always_wins_has_one():
    """Three models of known strength; a fourth is beaten by all: 95% of intervals hold the truth, and none is infinite."""
    rng, inside = np.random.default_rng(8), []
    strength = np.array([1.0, 2.0, 4.0])
    for seed in range(60):
        p = strength[:, None] / (strength[:, None] + strength[None, :])
        wins = (rng.random((150, 3, 3)) < p).astype(float)
        upper = np.triu_indices(3, 1)
        wins[:, upper[1], upper[0]] = 1 - wins[:, upper[0], upper[1]]
        wins[:, range(3), range(3)] = np.nan
        found = statistics.bradley_terry(wins, seed, resamples=200)
        inside += [e.low <= 1000 + 400 * np.log10(s) <= e.high for e, s in zip(found[1:], strength[1:], strict=True)]
    assert np.mean(inside) >= 0.88
    beaten = np.full((20, 2, 2), np.nan)
    beaten[:, 0, 1], beaten[:, 1, 0] = 1.0, 0.0
    assert 0 < statistics.bradley_terry(beaten)[1].value < 400


def test_holm_is_the_published_correction():
    """Smallest times 4, next times 3, …, never falling: 0.01·4, 0.02·3, max(0.06, 0.03·2), max(0.06, 0.5)."""
    assert statistics.holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert statistics.holm([]) == []


def test_what_can_be_detected_is_detected_four_times_in_five():
    rng = np.random.default_rng(6)
    one = [1.0] * 100
    e = statistics.paired_difference((rng.normal(0, 1, 100), one), (rng.normal(0, 1, 100), one))
    shift, seen = statistics.detectable(e), 0
    for _ in range(400):
        d = rng.normal(shift, 2**0.5, 100)
        seen += abs(d.mean()) > 1.96 * d.std(ddof=1) / 10
    assert 0.72 < seen / 400 < 0.88


@pytest.mark.slow
def test_a_table_of_noise_shows_nothing_in_95_of_100_seeds():
    """Three equally good models, four metrics each, twelve comparisons: none is significant, family-wise."""
    from lib.evals import summary
    from lib.evals.task import Scores

    found = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        hard = rng.normal(0, 1, 100)
        scores = []
        for run in "abc":
            ids = [str(i) for i in range(100)]
            for m in range(4):
                noisy = hard + rng.normal(0, 1, 100)
                kind, tops = ("proportion", (noisy > 0).astype(float)) if m < 2 else ("mean", noisy)
                scores.append(Scores("t", f"m{m}", run, ids, list(tops), kind=kind))
        table = summary.comparisons(scores, seed)
        assert len(table) == 12
        found += any(c.p_holm < 0.05 for c in table)
    assert found <= 5


def test_length_control_takes_out_what_length_alone_explains():
    """A judge that likes length: the longer model wins most, and half of them at equal length. One that likes the first
    model, lengths alike: the controlled rate is the plain one. In 200 seeds the interval holds the truth 9 times in 10."""
    rng = random.Random(0)
    longer = [rng.gauss(100, 100) for _ in range(2000)]
    wins = [float(rng.random() < 1 / (1 + math.exp(-3 * math.tanh(d / 100)))) for d in longer]
    e = statistics.length_controlled(wins, longer)
    assert sum(wins) / 2000 > 0.7 and e.low < 0.5 < e.high
    fair = [float(rng.random() < 0.7) for _ in range(2000)]
    assert statistics.length_controlled(fair, [0.0] * 2000).value == pytest.approx(sum(fair) / 2000, abs=1e-3)
    held = 0
    for seed in range(200):
        rng = random.Random(seed)
        wins = [float(rng.random() < 0.6) for _ in range(100)]
        e = statistics.length_controlled(wins, [rng.gauss(0, 50) for _ in wins])
        held += e.low <= 0.6 <= e.high
    assert held >= 180
    assert 0.5 < statistics.length_controlled([1.0] * 5, [0.0] * 5).value < 1
