"""The jobs of a trial: those of earlier steps, if the search has any, and then the job that trials are compared by."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lib.config.job import SECTIONS
from lib.errors import UsageError, nearest
from lib.stage import training_cli
from lib.stage.declared import stages

if TYPE_CHECKING:
    from lib.config.job import Job
    from lib.stage.stage import Stage
    from tune.settings import Settings

KEYS = {"stage": str, "config": str, "set": dict}
"""Keys of an entry of `before`, and their types."""


@dataclass(frozen=True)
class Step:
    """One job of every trial."""

    name: str
    """Its key in `before`; "" for the last one, by which trials are compared."""
    stage: Stage
    config: str
    """Absolute path of the YAML file that it starts from."""
    set: dict[str, Any]
    """{dotted key: value}, the same for all trials. {NAME} in a text stands for the run of an earlier step."""
    base: Job
    """The job without the settings of a trial."""

    def job(self, options: dict[str, Any], runs: dict[str, str]) -> Job:
        """Returns the job with these keys over those of `set`. runs: {earlier step: its run}."""
        return parsed(self.config, self.stage, {k: filled(v, runs) for k, v in (self.set | options).items()})

    def seeded(self, seed: int | None) -> dict[str, Any]:
        """Returns the keys of the job's seeds, with `seed` added to them."""
        train = self.base.train
        now = {"train.seed": train.get("seed", 42), "train.data_seed": train.get("data_seed")}  # 42: transformers' own
        return {key: value + seed for key, value in now.items() if value is not None} if seed else {}


def filled(value: Any, runs: dict[str, str]) -> Any:
    """Returns the value with each {NAME} replaced by that step's run."""
    for name, run in runs.items():
        value = value.replace(f"{{{name}}}", run) if isinstance(value, str) else value
    return value


def words(options: dict[str, Any]) -> list[str]:
    """Returns {dotted key: value} as words of a command line."""
    return [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in options.items()]


def parsed(config: str, stage: Stage, options: dict[str, Any]) -> Job:
    """Returns the job of a YAML file with {dotted key: value} over its own. Raises UsageError."""
    job: Job = training_cli.parse(stage, ["--config", config, *words(options)]).job
    return job


def read(settings: Settings) -> list[Step]:
    """Returns the steps of every trial, the last one being `stage` and `config`. Raises UsageError, naming the key."""
    problems = []
    for name, entry in settings.before.items():
        where = f"before.{name}"
        if not isinstance(entry, dict):
            raise UsageError(f"{where}: must be {{stage: …, config: …}}, is {entry!r}.")
        problems += [f"{where}.{k} is not a key of a step.{nearest(k, KEYS)}" for k in entry if k not in KEYS]
        problems += [
            f"{where}.{k}: is missing."
            if k not in entry
            else f"{where}.{k}: must be a {kind.__name__}, is {entry[k]!r}."
            for k, kind in KEYS.items()
            if (k in entry or k != "set") and not isinstance(entry.get(k), kind)
        ]
        if name in (*SECTIONS, "train", settings.stage) or "." in name:
            problems.append(f"{where}: must have another name: {name} is a part of a job or the search's stage.")
        elif not any(key.startswith(f"{name}.") for key in settings.space):
            problems.append(f"{where}: no key of the space varies it. Train it once, and set its run: set.model.base.")
        elif f"{{{name}}}" not in json.dumps([settings.set, settings.before]):
            problems.append(f'{where}: no later job starts from it. Say so: set: {{model.base: "{{{name}}}"}}.')
    if problems:
        raise UsageError("\n".join(problems))
    found = []
    for name, entry in settings.before.items():
        entry["config"] = os.path.abspath(entry["config"])
        found.append(_step(f"before.{name}.", name, entry["stage"], entry["config"], entry.get("set", {})))
    found.append(_step("", "", settings.stage, settings.config, settings.set))
    for step in found[:-1]:
        for key in ("workers", "cpus_per_worker", "device"):
            mine, last = getattr(step.base.scale, key), getattr(found[-1].base.scale, key)
            if mine != last:
                problems.append(f"before.{step.name}: scale.{key}: must be {last}, as in the job after it, is {mine}.")
    if problems:
        raise UsageError("\n".join(problems))
    return found


def _step(where: str, name: str, stage: str, config: str, given: dict[str, Any]) -> Step:
    known = stages()
    if stage not in known:
        near = nearest(stage, known)
        raise UsageError(f"{where}stage: there is no training stage {stage}. Known: {', '.join(sorted(known))}.{near}")
    return Step(name, known[stage], config, given, parsed(config, known[stage], given))


def own(settings: dict[str, Any], name: str, steps: list[Step]) -> dict[str, Any]:
    """Returns those of a trial's {key: value} that belong to a step, without the step's name. name: "" for the last one."""
    of = {k: next((s.name for s in steps if s.name and k.startswith(f"{s.name}.")), "") for k in settings}
    return {k.removeprefix(f"{name}.") if name else k: v for k, v in settings.items() if of[k] == name}
