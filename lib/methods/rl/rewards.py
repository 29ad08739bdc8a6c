"""Rewards: numbers that say how good an answer is, each with a weight in the job's section `rewards`.

    demo, gsm8k, demo_steps, reference    the headline metric of a task (lib/evals/registry.py)
    demo.terse                            another metric of it
    run:PATH                              the reward of a reward run for the whole conversation
    matches:PATTERN                       1 if the regular expression is found in the answer with its reasoning, else 0
    length                                tokens of the answer ÷ train.max_completion_length, from 0 to 1
    unfinished                            1 if the answer was cut off at train.max_completion_length, else 0

An answer's reward is Σ weight × reward. If one of its rewards can't be computed, the answer is left out of the update and counted:
a missing number never counts as 0. Rewards of weight 0 are computed for held-out prompts only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lib.config.job import Job
from lib.errors import nearest
from lib.evals import registry
from lib.evals.task import Example, Task
from lib.methods.rl.rollouts import Rollout
from lib.models import load, locate
from lib.runtime import hardware

RUN, MATCHES = "run:", "matches:"
PLAIN: dict[str, Callable[[Rollout, int], float]] = {
    "length": lambda rollout, most: len(rollout.answer) / most,
    "unfinished": lambda rollout, most: float(not rollout.finished),
}
"""{name: reward(rollout, longest answer in tokens)}"""

Score = Callable[[Sequence[dict], Sequence[Rollout]], list[float | None]]


@dataclass
class Rewards:
    """names: of the rewards; weights: of each; scores: functions of (rows, rollouts), each of which returns a number per rollout, or
    None where there is none; clip: each number is limited to ±clip before its weight. None: no limit."""

    names: list[str]
    weights: list[float]
    scores: list[Score]
    clip: float | None = None

    def score(self, rows: Sequence[dict], rollouts: Sequence[Rollout]) -> list[list[float | None]]:
        """Returns a number per reward for each rollout, and None for all of them if one is missing. rows: the row of each rollout."""
        columns = [[self._clipped(x) for x in score(rows, rollouts)] for score in self.scores]
        return [[None] * len(row) if None in row else list(row) for row in zip(*columns, strict=True)]

    def total(self, numbers: Sequence[float | None]) -> float | None:
        """Returns Σ weight × reward of one answer; None if its rewards are missing."""
        found = [w * x for w, x in zip(self.weights, numbers, strict=True) if x is not None]
        return sum(found) if len(found) == len(self.weights) else None

    def trained(self) -> Rewards:
        """Returns those that the model learns from: without those of weight 0."""
        names, weights, scores = zip(
            *(x for x in zip(self.names, self.weights, self.scores, strict=True) if x[1]), strict=True
        )
        return Rewards(list(names), list(weights), list(scores), self.clip)

    def _clipped(self, value: float | None) -> float | None:
        return value if value is None or self.clip is None else max(-self.clip, min(self.clip, value))


def make(job: Job, args) -> Rewards:
    """Returns the job's rewards. args: with max_completion_length and reward_clip; a reward run is loaded onto args.device."""
    assert job.rewards, "checked by `check`"
    scores = [_score(name, args) for name in job.rewards]
    return Rewards(list(job.rewards), list(job.rewards.values()), scores, args.reward_clip)


def check(job: Job, args) -> None:
    """Raises ValueError, naming the key, for an unknown reward. Runs are looked up by lib/stage/plan.py."""
    if not any((job.rewards or {}).values()):
        raise ValueError("rewards: name at least one with a weight other than 0, such as --rewards.demo 1.")
    for name in job.rewards or ():
        if name.startswith(MATCHES):
            _pattern(name)
        elif _of_task(name):
            task_metric(name)
    if args.reward_clip is not None and args.reward_clip <= 0:
        raise ValueError(f"train.reward_clip: must be above 0, is {args.reward_clip}.")


def fits(job: Job, args, checked) -> None:
    """Raises ValueError if the rows don't suit the rewards. checked: a lib.data.Check."""
    for name, weight in (job.rewards or {}).items():
        if not weight and checked.heldout_rows == 0:
            raise ValueError(
                f"rewards.{name}: of weight 0, so measured on held-out rows, and there are none. Raise data.heldout_fraction, or set "
                "it to null, which leaves it out."
            )
    tasks = [name for name in job.rewards or () if _of_task(name)]
    if tasks and checked.kind not in ("problem", None):
        raise ValueError(
            f"rewards.{tasks[0]}: compares answers with right ones, and the rows of data.source are {checked.kind}s without. "
            "Name rows with answers, such as question and answer, or another reward."
        )
    if checked.tool_rows:
        raise ValueError(
            f"data.source: {checked.tool_rows:,} rows have tools, which rollouts don't call. Leave them out."
        )


def check_references(job: Job, rows: Sequence[dict]) -> None:
    """Raises ValueError for a row whose reference a task of `rewards` can't read."""
    for name in job.rewards or ():
        if not _of_task(name):
            continue
        task, _ = task_metric(name)
        for number, row in enumerate(rows, 1):
            try:
                task.reference(row["reference"])  # type: ignore[attr-defined]  # task_metric looked for it
            except ValueError as e:
                raise ValueError(f"rewards.{name}: row {number}: {e}") from None


def task_metric(name: str) -> tuple[Task, str]:
    """Returns (the task, its metric) that a reward names. Raises ValueError with the nearest names."""
    title, _, metric = name.partition(".")
    able = [n for n in registry.TASKS if hasattr(registry.TASKS[n](None), "reference")]
    if title not in able:
        why = (
            "its rows hold more than an answer, so data.source can't give them"
            if title in registry.TASKS
            else "there is none"
        )
        known = [*able, *PLAIN, f"{RUN}PATH", f"{MATCHES}PATTERN"]
        raise ValueError(f"rewards.{name}: {why}.{nearest(name, known)} Known: {', '.join(known)}.")
    task = registry.task(title)
    metric = metric or next(iter(task.metrics))
    if metric not in task.metrics:
        raise ValueError(
            f"rewards.{name}: {title} has no metric {metric}.{nearest(metric, task.metrics)} It has {', '.join(task.metrics)}."
        )
    return task, metric


def better(name: str) -> str:
    """Returns whether "higher" or "lower" values of a reward are better; "": neither."""
    if name.startswith((RUN, MATCHES)):
        return "higher"
    if name in PLAIN:
        return ""
    task, metric = task_metric(name)
    return task.metrics[metric].better


def _of_task(name: str) -> bool:
    return not name.startswith((RUN, MATCHES)) and name not in PLAIN


def _pattern(name: str) -> re.Pattern[str]:
    try:
        return re.compile(name.removeprefix(MATCHES), re.DOTALL)
    except re.error as e:
        raise ValueError(f"rewards.{name}: is no regular expression of Python: {e}.") from None


def _score(name: str, args) -> Score:
    if name.startswith(RUN):
        return _of_run(name.removeprefix(RUN), args)
    if name.startswith(MATCHES):
        pattern = _pattern(name)
        return lambda rows, rollouts: [float(pattern.search(r.text) is not None) for r in rollouts]
    if name in PLAIN:
        return lambda rows, rollouts: [PLAIN[name](r, args.max_completion_length) for r in rollouts]
    task, metric = task_metric(name)

    def of_task(rows: Sequence[dict], rollouts: Sequence[Rollout]) -> list[float | None]:
        found: list[float | None] = []
        for row, rollout in zip(rows, rollouts, strict=True):
            example = Example("", row["prompt"], task.reference(row["reference"]))  # type: ignore[attr-defined]
            value = task.score(example, rollout.final).get(metric)
            found.append(value[0] / value[1] if isinstance(value, tuple) else value)
        return found

    return of_task


def _of_run(path: str, args) -> Score:
    from lib.generation.reward_model import RewardModel

    where, device = locate.path(path), args.device.type
    model = RewardModel(where, hardware.dtype("auto", device), str(args.device), load.parent_template(path))

    def of_run(rows: Sequence[dict], rollouts: Sequence[Rollout]) -> list[float | None]:
        return list(
            model.reward(
                [
                    [*row["prompt"], {"role": "assistant", "content": r.text}]
                    for row, r in zip(rows, rollouts, strict=True)
                ]
            )
        )

    return of_run
