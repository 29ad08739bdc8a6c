"""Intervals compared with published values and with simulations."""

import math
import random

import numpy as np
import pytest
from scipy.stats import norm

from lib.evals.statistics import intervals, tango


def test_wilson_is_the_published_interval():
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    for right, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        e = intervals.proportion([1.0] * right + [0.0] * (n - right))
        assert (round(e.low, 4), round(e.high, 4), e.n) == (low, high, n)
        assert e.value == right / n


def test_wins_with_ties_are_a_paired_difference():
    """Tango's interval of wins minus losses; without ties it is Wilson's; with only ties it isn't empty: z²/(n + z²)."""
    e = intervals.proportion([1.0] * 5 + [0.5] * 50 + [0.0] * 45)
    assert (e.value, e.method) == (0.3, "Tango")
    assert (2 * e.low - 1, 2 * e.high - 1) == pytest.approx(tango.tango(5, 45, 100, 1.959964), abs=1e-6)
    assert tango.tango(30, 70, 100, 1.959964)[0] == pytest.approx(2 * intervals.proportion([1] * 30 + [0] * 70).low - 1)
    e = intervals.proportion([0.5] * 20)
    assert (e.low, e.high) == pytest.approx((0.5 - 0.5 * 3.8415 / 23.8415, 0.5 + 0.5 * 3.8415 / 23.8415), abs=1e-5)


def test_tango_is_the_published_interval():
    """Fagerland, Lydersen and Laake 2014, airway hyper-responsiveness before and after: tables (1, 1, 7, 12), −0.517 to −0.026."""
    low, high = tango.tango(1, 7, 21, 1.959964)
    assert (round(float(low), 3), round(float(high), 3)) == (-0.517, -0.026)
    before, after = [1.0] * 7 + [0.0] + [1.0] + [0.0] * 12, [0.0] * 7 + [1.0] + [1.0] + [0.0] * 12
    e = intervals.paired_proportions(before, after)
    assert (round(e.low, 3), round(e.high, 3), e.n, e.method) == (-0.517, -0.026, 21, "paired, Tango")


def test_answers_to_a_question_count_together():
    """Five identical answers to each of 20 questions are as uncertain as one answer each; five unrelated ones are as certain as
    100 answers, up to Student's quantile."""
    once, groups = [1.0] * 8 + [0.0] * 12, [i // 5 for i in range(100)]
    five = intervals.proportion([x for x in once for _ in range(5)], groups)
    one = intervals.proportion(once)
    assert five.value == one.value and five.low <= one.low and five.high >= one.high
    assert five.high - five.low < 1.12 * (one.high - one.low)
    loose = intervals.proportion([float(i % 5 < 2) for i in range(100)], groups)
    single = intervals.proportion([float(i % 5 < 2) for i in range(100)])
    assert 1 < (loose.high - loose.low) / (single.high - single.low) < 1.08
    assert intervals.proportion([0.0] * 100, groups).high == intervals.proportion([0.0] * 20).high


def test_wilson_refuses_what_is_no_proportion():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        intervals.proportion([0.2, 1.3])
    with pytest.raises(ValueError, match="no examples"):
        intervals.proportion([])


def test_bootstrap_agrees_with_the_normal_interval_and_its_seed():
    values = np.random.default_rng(3).normal(5.0, 1.0, 400)
    e = intervals.bootstrap_mean(values, seed=7)
    half = 1.96 * values.std(ddof=1) / 20
    assert e.value == pytest.approx(values.mean())
    assert e.low == pytest.approx(values.mean() - half, abs=0.01)
    assert e.high == pytest.approx(values.mean() + half, abs=0.01)
    assert e == intervals.bootstrap_mean(values, seed=7)


def test_ratio_weighs_documents_by_their_length():
    """3 nats over 1 token and 3 over 5 tokens: 1 nat per token, not the mean of 3 and 0.6."""
    assert intervals.bootstrap_ratio([3.0, 3.0], [1.0, 5.0]).value == 1.0


def test_what_has_no_interval():
    assert intervals.bootstrap_mean([2.0]).low is None
    same = intervals.bootstrap_mean([2.0] * 30)
    assert (same.value, same.low, same.high, same.n) == (2.0, None, None, 30)
    assert same.method == "no interval: 0 of 30 values differ from the most common one, 5 are needed"
    rare = intervals.paired_difference(([1.0] * 30, [1.0] * 30), ([1.0] * 26 + [3.0, 2.5, 0.2, 0.1], [1.0] * 30))
    assert rare.value == pytest.approx(1.8 / 30) and rare.low is None and rare.method.startswith("no interval: 4 of 30")


def test_an_interval_does_not_leave_the_values():
    """Scores from 0 to 1 that are mostly 1: the upper limit of the mean is not above 1."""
    e = intervals.bootstrap_mean([1.0] * 20 + [0.2, 0.3, 0.5, 0.6, 0.7, 0.8])
    assert 0.2 < e.low < e.value < e.high <= 1


def test_pairing_takes_out_the_difficulty_of_the_examples():
    rng = np.random.default_rng(4)
    hard = rng.normal(0, 10, 100)
    a, b = hard + rng.normal(0, 0.1, 100), hard + 0.5 + rng.normal(0, 0.1, 100)
    one = [1.0] * 100
    e = intervals.paired_difference((a, one), (b, one))
    assert 0.45 < e.low < e.value < e.high < 0.55
    assert not intervals.apart(intervals.bootstrap_mean(a), intervals.bootstrap_mean(b))


def test_paired_values_must_match():
    with pytest.raises(ValueError, match="same examples"):
        intervals.paired_difference(([1, 2], [1, 1]), ([1], [1]))


def test_mcnemar_mid_p():
    """10 against 2 discordant examples: 2 · (C(12,0) + C(12,1) + C(12,2) / 2) / 2¹² = 92 / 4096."""
    a, b = [0.0] * 10 + [1.0] * 2 + [1.0] * 5, [1.0] * 10 + [0.0] * 2 + [1.0] * 5
    assert intervals.mcnemar(a, b) == intervals.mcnemar(b, a) == pytest.approx(92 / 4096)
    assert intervals.mcnemar(a, a) == 1.0
    assert intervals.mcnemar([1.0, 0.0], [0.0, 1.0]) == pytest.approx(1.0)


def test_apart():
    low, high = intervals.proportion([0.0] * 95 + [1.0] * 5), intervals.proportion([1.0] * 70 + [0.0] * 30)
    assert intervals.apart(low, high) and intervals.apart(high, low) and not intervals.apart(low, low)


def test_sign_flips_is_exact_for_few_examples():
    """Ten differences of +1: of 1,024 sign patterns, only the two with all signs equal are as extreme."""
    one = [1.0] * 10
    assert intervals.sign_flips(([0.0] * 10, one), ([1.0] * 10, one)) == pytest.approx(2 / 1024)
    assert intervals.sign_flips(([0.5] * 10, one), ([0.5] * 10, one)) == 1.0
    more = [1.0] * 1000  # only ten of a thousand differ
    assert intervals.sign_flips(([0.0] * 1000, more), ([1.0] * 10 + [0.0] * 990, more)) == pytest.approx(2 / 1024)


def test_sign_flips_of_many_examples_is_close_to_the_normal_test():
    """z is the sum divided by its standard deviation under flipped signs; its p is matched within three standard errors of
    9,999 patterns."""
    values = np.random.default_rng(0).normal(0.2, 1, 100)
    z = values.sum() / np.sqrt((values**2).sum())
    p = intervals.sign_flips(([0.0] * 100, [1.0] * 100), (list(values), [1.0] * 100))
    assert p == pytest.approx(2 * norm.sf(z), abs=0.008)


def test_ratings_are_the_odds():
    """Two models, 30 wins to 10: odds of 3 (with half a draw on each side, 30.25 to 10.25)."""
    wins = np.full((40, 2, 2), np.nan)
    wins[:30, 0, 1], wins[:30, 1, 0] = 0.0, 1.0
    wins[30:, 0, 1], wins[30:, 1, 0] = 1.0, 0.0
    first, second = intervals.bradley_terry(wins)
    assert first.value == 1000 and second.value == pytest.approx(1000 + 400 * np.log10(30.25 / 10.25))
    assert second.low < second.value < second.high


def test_ratings_cover_and_a_model_that_always_wins_has_one():
    """Three models of known strength and a fourth that loses to all: 95% of intervals contain the true value, and none is infinite."""
    rng, inside = np.random.default_rng(8), []
    strength = np.array([1.0, 2.0, 4.0])
    for seed in range(60):
        p = strength[:, None] / (strength[:, None] + strength[None, :])
        wins = (rng.random((150, 3, 3)) < p).astype(float)
        upper = np.triu_indices(3, 1)
        wins[:, upper[1], upper[0]] = 1 - wins[:, upper[0], upper[1]]
        wins[:, range(3), range(3)] = np.nan
        found = intervals.bradley_terry(wins, seed, resamples=200)
        inside += [e.low <= 1000 + 400 * np.log10(s) <= e.high for e, s in zip(found[1:], strength[1:], strict=True)]
    assert np.mean(inside) >= 0.88
    beaten = np.full((20, 2, 2), np.nan)
    beaten[:, 0, 1], beaten[:, 1, 0] = 1.0, 0.0
    assert 0 < intervals.bradley_terry(beaten)[1].value < 400


def test_holm_is_the_published_correction():
    """The smallest times 4, the next times 3, …, never decreasing: 0.01·4, 0.02·3, max(0.06, 0.03·2), max(0.06, 0.5)."""
    assert intervals.holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert intervals.holm([]) == []


def test_what_can_be_detected_is_detected_four_times_in_five():
    """Averaged over 20 samples, since the spread of one sample of 100 has an error of 7%, and so has its detectable difference."""
    rng, one, seen = np.random.default_rng(6), [1.0] * 100, []
    for _ in range(20):
        e = intervals.paired_difference((rng.normal(0, 1, 100), one), (rng.normal(0, 1, 100), one))
        d = rng.normal(intervals.detectable(e), 2**0.5, (200, 100))
        seen.append(np.mean(abs(d.mean(1)) > 1.96 * d.std(1, ddof=1) / 10))
    assert 0.75 < np.mean(seen) < 0.86


@pytest.mark.slow
def test_a_table_of_noise_shows_nothing_in_95_of_100_seeds():
    """Three equally good models, four metrics each, twelve comparisons: none is significant, family-wise."""
    from lib.evals.report import summary
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
    """A judge that prefers length: the longer model wins most, but half at equal length. A judge that prefers the first model, with
    equal lengths: the controlled rate equals the plain one. In 200 seeds the interval contains the true value 9 times in 10."""
    rng = random.Random(0)
    longer = [rng.gauss(100, 100) for _ in range(2000)]
    wins = [float(rng.random() < 1 / (1 + math.exp(-3 * math.tanh(d / 100)))) for d in longer]
    e = intervals.length_controlled(wins, longer)
    assert sum(wins) / 2000 > 0.7 and e.low < 0.5 < e.high
    fair = [float(rng.random() < 0.7) for _ in range(2000)]
    assert intervals.length_controlled(fair, [0.0] * 2000).value == pytest.approx(sum(fair) / 2000, abs=1e-3)
    held = 0
    for seed in range(200):
        rng = random.Random(seed)
        wins = [float(rng.random() < 0.6) for _ in range(100)]
        e = intervals.length_controlled(wins, [rng.gauss(0, 50) for _ in wins])
        held += e.low <= 0.6 <= e.high
    assert held >= 180
    assert 0.5 < intervals.length_controlled([1.0] * 5, [0.0] * 5).value < 1


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_gives_no_verdict(odd):
    fine, bad, ones = [1.0, 2.0, 3.0, 4.0], [1.0, odd, 3.0, 4.0], [1.0] * 4
    for made in (
        lambda: intervals.proportion([0.0, odd]),
        lambda: intervals.bootstrap_mean(bad),
        lambda: intervals.paired_difference((fine, ones), (bad, ones)),
        lambda: intervals.sign_flips((fine, ones), (bad, ones)),
    ):
        with pytest.raises(ValueError, match="scores are no finite number, the first that of example 2"):
            made()


def test_documents_without_a_token_say_nothing():
    """45 of 51 documents have no token: the interval is that of the other six, or none, and never NaN."""
    tops, bottoms = [*range(1, 7), *[0] * 45], [*[2.0] * 6, *[0.0] * 45]
    found, alone = intervals.bootstrap_ratio(tops, bottoms), intervals.bootstrap_ratio(tops[:6], bottoms[:6])
    assert (found.value, found.low, found.high) == (alone.value, alone.low, alone.high) and found.low == found.low
    one = intervals.bootstrap_ratio([1.0, *[0.0] * 5], [2.0, *[0.0] * 5])
    assert one.low is None and one.method.startswith("no interval")
