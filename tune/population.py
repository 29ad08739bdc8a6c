"""Population based training (Jaderberg et al. 2017, https://arxiv.org/abs/1711.09846) in generations.

All members train for `every` steps, then the worst quarter go on from checkpoints of the best quarter with other settings, and so on to the
job's last step. Each member's part of a generation is a trial of its own, which begins with a copy of its parent's checkpoint. So a trial never
goes back, no checkpoint is needed that doesn't exist yet (ray-project/ray#27170) or that was removed (ray#9036), and the next generation depends
on the journal alone, also after a kill (ray#54755). All members wait for the slowest one.

The settings of a trial hold the changes of its whole lineage as the job's `schedule`, so that the job without the search takes the same steps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tune.journal import Trial
from tune.proposals import propose
from tune.ranking import ranked
from tune.settings import Settings
from tune.space import Parameter, Space

QUANTILE, RESAMPLE, FACTORS = 0.25, 0.25, (0.8, 1.2)
"""Share of the members that are replaced; probability that a replaced member's value is drawn anew instead of multiplied by one of FACTORS.
These are Ray Tune's defaults."""
CHANGES = {"train.learning_rate": "schedule.learning_rate", "train.weight_decay": "schedule.weight_decay"}
"""{key that can change during training: key of the job that holds its changes}"""


def following(space: Space, settings: Settings, mode: str, trials: list[Trial]) -> dict[str, Any] | None:
    """Returns settings, member, generation and parent of the next trial; None if the generation is under way or was the last.

    trials: those of the search.
    """
    size, now = settings.budget.trials or 0, max((t.generation for t in trials), default=0)
    there = {t.member: t for t in trials if t.generation == now}
    before = {t.member: t for t in trials if t.generation == now - 1}
    for member in range(size):
        if member not in there and now == 0:
            drawn = propose(space, replace(settings, search="random"), mode, [], member)
            return {"settings": drawn, "member": member, "generation": 0, "parent": None}
        if member not in there:
            return _next_of(space, settings, mode, before, member, now)
    if any(t.status == "running" for t in there.values()) or not any(t.status == "stopped" for t in there.values()):
        return None
    return _next_of(space, settings, mode, there, 0, now + 1)


def _next_of(
    space: Space, settings: Settings, mode: str, before: dict[Any, Trial], member: int, generation: int
) -> dict[str, Any]:
    import numpy as np

    draw = np.random.default_rng([settings.seed, generation, member])
    going = ranked([t for t in before.values() if t.status == "stopped"], settings.curve, settings.curve_mode(mode))
    few = max(1, int(QUANTILE * len(before)))
    worst = going[max(few, len(before) - few) :]  # those that failed rank below all others
    parent = before[member]
    changed = parent.settings
    if parent in worst or parent not in going:
        parent = going[draw.integers(min(few, len(going)))]
        changed = _explored(space, settings, mode, parent, draw)
    return {"settings": changed, "member": member, "generation": generation, "parent": parent.number}


def _explored(space: Space, settings: Settings, mode: str, parent: Trial, draw: Any) -> dict[str, Any]:
    out = dict(parent.settings)
    anew = propose(space, replace(settings, search="random", seed=int(draw.integers(2**31))), mode, [], 0) or {}
    for p in space.parameters:
        changes = out.get(CHANGES[p.key], {})
        value = [out[p.key], *changes.values()][-1]
        value = anew[p.key] if draw.random() < RESAMPLE else _near(p, value, int(draw.integers(2)))
        out[CHANGES[p.key]] = {**changes, str(parent.step): value}
    return out


def _near(p: Parameter, value: float, which: int) -> float:
    """Returns the value times 0.8 or 1.2, within the space; of listed values the one before or after."""
    if values := p.all():
        at = values.index(value) + (1 if which else -1)
        return float(values[min(max(at, 0), len(values) - 1)])
    low, high = p.values
    return float(min(max(value * FACTORS[which], low), high))
