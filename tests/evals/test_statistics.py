"""Intervals against published values and by simulation."""

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
