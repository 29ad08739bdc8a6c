"""Warnings of runs that learn from rewards: each fires in a run with its fault, and none in a healthy or a noisy one."""

import random

import pytest

from lib.methods.rl import warnings
from lib.methods.rl.distinct import distinct
from lib.methods.rl.windows import difference, ends, window
from tests.methods import learning


def names(rows, **given) -> list[str]:
    return [f.name for f in warnings.find(rows, ["demo"], **given)]


def test_a_healthy_run_gets_no_warning():
    """Its reward and its held-out measure rise, and entropy and distinct-2 fall a little, as they do when a model becomes surer."""
    assert names(learning.rows(), kl_limit=10.0) == []


@pytest.mark.parametrize("name", learning.FAULTS)
def test_a_fault_is_warned_of_with_its_evidence_and_nothing_else_is(name):
    (found,) = warnings.find(learning.rows(**learning.FAULTS[name]), ["demo"], kl_limit=10.0)
    assert found.name == name
    first, last = found.evidence[:2]
    assert (first.first, first.last, last.first, last.last) == (1, 6, 46, 60)
    assert found.to_dict()["evidence"][1]["steps"] == [46, 60] and "in steps 46–60" in found.lines()[0]


@pytest.mark.parametrize("steps", [3, 9])
@pytest.mark.parametrize("name", learning.FAULTS)
def test_too_few_steps_say_nothing(name, steps):
    rows = learning.rows(steps, **learning.FAULTS[name])
    assert names(rows, kl_limit=10.0) == [] and warnings.too_few(rows)


def test_noise_is_not_a_change():
    """No metric has a trend, values are correlated from step to step, and the held-out measure of 50 prompts is drawn anew."""
    fired = []
    for seed in range(100):
        rows = learning.noise(seed)
        fired += names(rows, kl_limit=4.0)
    assert len(fired) <= 2


def test_hacking_needs_both_a_higher_reward_and_a_lower_measure():
    fault = learning.FAULTS["hacking"]
    assert names(learning.rows(**fault | {"reward": (0.5, 0.5)})) == []
    assert names(learning.rows(**fault | {"held": (0.5, 0.5, 0.45)})) == []
    rows = learning.rows(**fault)
    for row in rows:
        if "eval_answers" in row:
            row["eval_answers"] = 9
    assert names(rows) == []


def test_a_measure_that_has_risen_before_it_falls_is_compared_with_its_peak():
    (found,) = warnings.find(learning.rows(held=(0.2, 0.8, 0.4), reward=(0.2, 0.8)), ["demo"])
    assert found.name == "hacking" and [w.mean for w in found.evidence[2:]] == [0.8, 0.4]
    assert found.evidence[2].first == 30 and found.evidence[0].last == 30


def test_answers_cut_off_are_an_explosion_that_the_mean_length_hides():
    rows = learning.rows(**{"completions/mean_length": (30, 48), "completions/clipped_ratio": (0.1, 0.95)})
    (found,) = warnings.find(rows)
    assert found.name == "length explosion" and [w.measure for w in found.evidence] == ["share cut off"] * 2


def test_the_divergence_of_an_answer_is_that_of_a_token_times_its_tokens():
    assert warnings.divergence([{"step": 1, "kl": 0.5, "completions/mean_length": 20.0}]) == [(1, 10.0)]
    assert warnings.divergence([{"step": 1, "kl": 0.5, "kl_sequence": 7.0}]) == [(1, 7.0)]
    assert names(learning.rows(**learning.FAULTS["kl"])) == []  # without a limit


def test_values_that_are_missing_are_skipped():
    rows = learning.rows(**learning.FAULTS["entropy collapse"])
    assert names([{"step": 0, "reward": None, "entropy": None}, *rows, {"step": 60, "train_loss": 1.0}]) == [
        "entropy collapse"
    ]


def test_a_window_is_a_mean_with_its_interval():
    """The line through the values rises by 0.3 a step, which leaves a sum of squares of 9.1; 5.841 is the 99.5% quantile of Student's t
    with 3 degrees of freedom."""
    found = window("x", list(enumerate([1.0, 5.0, 2.0, 4.0, 3.0])))
    reach = 5.84091 * (9.1 / 3 / 5) ** 0.5
    assert found.mean == 3 and found.interval == pytest.approx((3 - reach, 3 + reach), abs=1e-4)


def test_alike_neighbours_widen_the_interval_and_a_steady_trend_does_not():
    wave = [0.0, 1.0, 2.0, 1.0, 0.0, -1.0, -2.0, -1.0, 0.0, 1.0, 2.0, 1.0]
    error = window("x", list(enumerate(wave))).error
    assert (
        error
        > 1.3 * window("x", list(enumerate([1.0, -1.0, 2.0, 0.0, 1.0, -2.0, 0.0, 2.0, 1.0, 0.0, -1.0, 1.0]))).error
    )
    assert window("x", [(i, v + 5.0 * i) for i, v in enumerate(wave)]).error == pytest.approx(error)


def test_the_interval_covers_the_difference_of_independent_values():
    rng, covered = random.Random(0), 0
    for _ in range(400):
        both = ends("x", [(i, rng.gauss(2.0 if i >= 30 else 1.0, 1.0)) for i in range(40)])
        low, high = difference(*both)
        covered += low <= 1 <= high
    assert covered >= 390


def test_distinct_n_counts_different_n_grams_within_answers():
    assert distinct([[1, 2, 3], [1, 2], [7]]) == pytest.approx(2 / 3)
    assert distinct([[1, 2, 3], [1, 2], [7]], n=1) == pytest.approx(4 / 6)
    assert distinct([[1], []]) is None
