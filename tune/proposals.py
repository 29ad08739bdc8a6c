"""Proposes the settings of the next trial. A proposal depends only on the seed, its number and the journal, so that a search that was
killed proposes what it would have proposed."""

from __future__ import annotations

from typing import Any

from tune.journal import Trial
from tune.settings import Settings
from tune.space import Space


def propose(
    space: Space, settings: Settings, mode: str, trials: list[Trial], number: int, again: int = 0
) -> dict[str, Any] | None:
    """Returns {key: value} of trial `number`, given the trials before it; None if the grid has no more combinations. again: number of
    proposals for this trial that were refused.

    random: independent draws. optuna: TPE, to which a stopped trial is one that Optuna pruned, with its reports as intermediate values,
    and a running trial counts as a bad one (constant liar), so that trials at the same time differ.
    """
    if settings.search == "grid":
        grid = space.grid()
        return grid[number] if number < len(grid) else None
    import numpy as np
    import optuna
    from optuna.samplers import RandomSampler, TPESampler
    from optuna.study import StudyDirection

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = int(np.random.SeedSequence([settings.seed, number, again]).generate_state(1)[0])
    sampler = RandomSampler(seed=seed) if settings.search == "random" else TPESampler(seed=seed, constant_liar=True)
    directions = [StudyDirection.MINIMIZE if mode == "min" else StudyDirection.MAXIMIZE]
    directions += [StudyDirection.MINIMIZE] if settings.second_objective != "none" else []
    study = optuna.create_study(sampler=sampler, directions=directions)
    if settings.search == "optuna":
        for t in trials:
            study.add_trial(told(space, t, settings, mode))
    return space.draw(study.ask())


def told(space: Space, t: Trial, settings: Settings, mode: str) -> Any:
    """Returns a trial as Optuna's FrozenTrial. If stopped trials have no value of the metric, Optuna gets what they were stopped by."""
    import optuna
    from optuna.trial import TrialState

    second = [t.seconds] if settings.second_objective == "seconds" else []
    value, sign = t.last(settings.metric), 1.0 if settings.curve_mode(mode) == mode else -1.0
    state = {
        "running": TrialState.RUNNING,
        "finished": TrialState.COMPLETE if value is not None else TrialState.FAIL,
        "stopped": TrialState.PRUNED,
        "failed": TrialState.FAIL,
    }[t.status]
    fixed = optuna.trial.FixedTrial(space.encode(t.settings))
    space.draw(fixed)
    return optuna.trial.create_trial(
        state=state,
        params=fixed.params,
        distributions=fixed.distributions,
        values=[value, *second] if value is not None and state == TrialState.COMPLETE else None,
        intermediate_values={step: sign * v for step, v in t.values(settings.curve)},
    )
