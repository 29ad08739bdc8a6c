"""How much each key of the space matters: PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) over the trials, with bootstrap intervals.

PED-ANOVA asks how the settings of the best trials differ from those of all trials. It uses only the order of the values, so one diverged
trial doesn't decide the result, and it compares with the settings that were tried, so a search that prefers good settings doesn't bias it
as it would fANOVA. Optuna's fANOVA needs scikit-learn, which isn't among this project's dependencies.

The learning rate usually decides whether a trial is any good, and hides all other keys. So the question is asked twice (the paper's local
importance): what it takes to be among the best third of all trials, and, given that a trial is in the better half, what it takes to be in
the best quarter.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

from tune.journal import Trial
from tune.proposals import told
from tune.settings import Settings
from tune.space import Space

FEWEST, FEWEST_GOOD = 8, 16
"""Fewer trials than this give no importance, over all trials and in the better half."""
RESAMPLES = 200
"""Number of bootstrap resamples of the trials."""


@dataclass(frozen=True)
class Importance:
    """How much one key decides whether a trial is among the best."""

    key: str
    value: float
    """Share of the importance of all keys, from 0 to 1; the shares of all keys sum to 1, even if none of them matters."""
    low: float
    high: float
    """95% percentile interval over bootstrap resamples of the trials."""


def importances(
    trials: list[Trial], space: Space, settings: Settings, mode: str, resamples: int = RESAMPLES, good: bool = False
) -> tuple[list[Importance], str]:
    """Returns (the importance of each key that varies, most important first; how trials were compared or, if the list is empty, why there
    is none). good: in the better half of the trials. Deterministic for the same trials and settings.seed."""
    if settings.curve != settings.metric and any(t.status == "stopped" for t in trials):
        mode, settings = settings.curve_mode(mode), replace(settings, metric=settings.curve)
    settings, fewest = replace(settings, second_objective="none"), FEWEST_GOOD if good else FEWEST
    values, how = at_equal_training(trials, settings.metric)
    if len(values) < fewest:
        few = f"{len(values)} finished or stopped trials have a value of {settings.metric}; importance needs {fewest}."
        return [], how if not values and how else few
    if len({value for _, value in values}) == 1:
        return [], f"All trials have the same {settings.metric}, so no key can be seen to matter."
    keys = [p.key for p in space.parameters if len({repr(t.settings.get(p.key)) for t, _ in values}) > 1]
    if len(keys) < 2:
        return [], "Fewer than two keys differ between the trials, so there is nothing to divide importance among."
    import numpy as np
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    whole = [told(space, t, settings, mode) for t in _as_finished(values, settings.metric, mode)]
    point = _shares(whole, keys, mode, good)
    rng = np.random.default_rng(np.random.SeedSequence([settings.seed, 2]))
    again = ([whole[i] for i in rng.integers(0, len(whole), len(whole))] for _ in range(resamples))
    drawn = [_shares(trials_again, keys, mode, good) for trials_again in again]
    found = []
    for key in keys:
        low, high = np.quantile([d[key] for d in drawn], (0.025, 0.975))
        # The point estimate can lie just outside: resamples repeat trials, which spreads the shares.
        found.append(Importance(key, point[key], min(float(low), point[key]), max(float(high), point[key])))
    return sorted(found, key=lambda i: -i.value), how


def at_equal_training(trials: list[Trial], metric: str) -> tuple[list[tuple[Trial, float]], str]:
    """Returns ((trial, value) of the finished and stopped trials of the search, at which reports the values were taken).

    If no trial was stopped, the last report: what the search compares. Otherwise the latest step at which every trial has reported, since a
    trial that was stopped early looks bad at its last report for lack of training. With asha, that step is the first rung. Leaving stopped
    trials out would be the alternative, but it keeps only good settings, among which a key that matters hardly varies.
    """
    there = [t for t in trials if t.role == "search" and t.status in ("finished", "stopped") and t.values(metric)]
    if all(t.status == "finished" for t in there):
        return [(t, t.values(metric)[-1][1]) for t in there], f"Trials are compared by {metric} at their last reports."
    reported = [dict(t.values(metric)) for t in there]
    shared = set.intersection(*(set(r) for r in reported))
    if not shared:
        return [], "Some trials were stopped, and there is no step at which all trials have reported."
    step = max(shared)
    how = f"Trials are compared by {metric} at step {step}, the latest at which all of them have reported; what happens later doesn't count."
    return [(t, r[step]) for t, r in zip(there, reported, strict=True)], how


def _as_finished(values: list[tuple[Trial, float]], metric: str, mode: str) -> list[Trial]:
    """Returns the trials as finished ones with one report, of the given value. A value that isn't finite counts as worst."""
    sign = 1.0 if mode == "min" else -1.0
    worst = max((sign * v for _, v in values if math.isfinite(v)), default=0.0) + 1.0
    return [
        replace(t, status="finished", reports=[{"step": 0, metric: v if math.isfinite(v) else sign * worst}])
        for t, v in values
    ]


def _shares(trials: list, keys: list[str], mode: str, good: bool) -> dict[str, float]:
    """Returns {key: share}, from Optuna's FrozenTrials; 0 for a key that none of them has.

    The best third is compared with all, since Optuna's default of a tenth leaves two of 20 trials; at least 5 trials as Optuna
    recommends, but no more than half. good: the best quarter, also at least 5, is compared with the better half.
    """
    import optuna

    study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
    study.add_trials(trials)
    five = 5 / len(trials)
    top, region = (max(1 / 4, five), 1 / 2) if good else (min(1 / 2, max(1 / 3, five)), 1.0)
    there = [k for k in keys if any(k in t.params for t in trials)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a condition holds in only one trial of a resample
        found = optuna.importance.get_param_importances(
            study,
            params=there,
            evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=top, region_quantile=region),
        )
    return {k: float(found.get(k, 0.0)) for k in keys}
