"""Which keys of a space matter: synthetic trials whose loss depends on one key alone."""

import math
import warnings
from dataclasses import replace

from tests.tune import searches
from tune import space
from tune.importance import at_equal_training, importances

S = searches.settings()
SPACE = space.read(S.space)[0]


def _found(trials, mode="min", settings=S, resamples=40, good=False):
    keys, about = importances(trials, SPACE, settings, mode, resamples, good)
    return {k.key: k for k in keys}, about


def test_the_key_that_matters_is_told_apart_from_those_that_do_not():
    trials = searches.trials(60, stops=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, about = _found(trials)
    matters, *others = sorted(found.values(), key=lambda k: -k.value)
    assert matters.key == "train.learning_rate" and len(others) == 3
    assert matters.low > max(k.high for k in others)
    assert abs(sum(k.value for k in found.values()) - 1) < 1e-9
    assert all(0 <= k.low <= k.value <= k.high <= 1 for k in found.values())
    assert about == "Trials are compared by eval_loss at their last reports."
    assert _found(trials)[0] == found  # the same trials and seed, the same numbers
    again, _ = _found(trials, settings=searches.settings(seed=1), resamples=3)
    assert {k: v.value for k, v in again.items()} == {k: v.value for k, v in found.items()} and again != found


def test_a_key_that_the_learning_rate_hides_decides_in_the_better_half():
    trials = searches.trials(300, stops=False)
    for t in (t for t in trials if t.settings):
        rate, decay = t.settings["train.learning_rate"], t.settings["train.weight_decay"]  # up to 0.1
        t.reports[-1]["eval_loss"] = decay + (abs(math.log10(rate) + 3) > 0.5)
    everywhere, there = (_found(trials, resamples=10, good=good)[0] for good in (False, True))
    for found, first in ((everywhere, "train.learning_rate"), (there, "train.weight_decay")):
        assert found[first].low > max(k.high for key, k in found.items() if key != first)
    assert not _found(trials[:16], good=True)[0] and "importance needs 16" in _found(trials[:16], good=True)[1]
    assert _found(trials[:17], good=True, resamples=2)[0]


def test_higher_is_better_gives_the_same_as_lower_is_better_of_the_negative():
    trials = searches.trials(20, stops=False)
    negative = [replace(t, reports=[r | {"eval_loss": -r["eval_loss"]} for r in t.reports]) for t in trials]
    assert _found(trials, "min", resamples=5) == _found(negative, "max", resamples=5)


def test_stopped_trials_are_compared_with_the_others_at_the_last_step_that_all_reached():
    trials = searches.trials()
    values, how = at_equal_training(trials, "eval_loss")
    assert len(values) == 19  # all but the one that failed
    assert all(value == dict(t.values("eval_loss"))[10] for t, value in values) and "step 10," in how
    assert how == _found(trials, resamples=2)[1]
    # A trial that learnt much after the first rung looks no better for it.
    changed = [replace(t, reports=[*t.reports[:1], *(r | {"eval_loss": 0.0} for r in t.reports[1:])]) for t in trials]
    assert _found(changed, resamples=5) == _found(trials, resamples=5)


def test_a_diverged_trial_counts_as_worst():
    trials = searches.trials(20, stops=False)
    worst = max((t for t in trials if t.role == "search"), key=lambda t: t.last("eval_loss"))
    before = _found(trials, resamples=5)
    for value in (math.nan, math.inf, 1e9):
        worst.reports[-1]["eval_loss"] = value
        assert _found(trials, resamples=5) == before


def test_without_enough_trials_or_differences_there_is_a_reason_instead():
    trials = searches.trials(20, stops=False)
    found, why = _found(trials[:8])
    assert not found and why.startswith("7 finished or stopped trials have a value of eval_loss")
    assert _found(trials[:9], resamples=2)[0]
    same = [replace(t, reports=[t.reports[-1] | {"eval_loss": 2.0}]) for t in trials]
    assert _found(same) == ({}, "All trials have the same eval_loss, so no key can be seen to matter.")
    one = [replace(t, settings={"train.learning_rate": t.settings.get("train.learning_rate", 1.0)}) for t in trials]
    assert not _found(one)[0] and "Fewer than two keys" in _found(one)[1]
    apart = [replace(t, status="stopped", reports=[t.reports[0] | {"step": t.number}]) for t in trials]
    assert not _found(apart)[0] and "no step at which all" in _found(apart)[1]
    assert _found([])[0] == {}
