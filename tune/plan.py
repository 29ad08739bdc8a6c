"""Checks a search before Ray starts, and makes the plan that is printed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from lib.config import config_file
from lib.config.command_line import Request
from lib.config.config_file import read_yaml
from lib.config.job import Job
from lib.errors import UsageError
from lib.run import Run
from lib.runtime import device, hardware, node_types
from lib.stage import plan as stage_plan
from lib.stage.preflight import Preflight
from tune import checks, evaluation, metrics, space
from tune.journal import Journal, Role, Trial
from tune.settings import Settings
from tune.space import Space
from tune.steps import Step, filled, own, read

MAY_CHANGE = ("budget", "concurrent", "retries", "usd_per_hour", "run", "confirm", "finalists")
"""Keys of the search that may differ when it goes on, because no proposal depends on them."""


@dataclass
class Plan:
    settings: Settings
    """With absolute paths."""
    mode: str
    """min or max."""
    steps: list[Step]
    """The jobs of a trial; the last one is what trials are compared by."""
    space: Space
    checked: list[list[stage_plan.Plan]]
    """The plans of the corners of the space, for each step."""
    before: Journal
    """What an earlier start of the search has done."""
    gpu: bool
    """Whether trials use GPUs."""
    notes: list[str]
    examples: int | None = None
    """Number of examples of the task that trials are compared by, both halves; None if it isn't known or the metric is no task."""
    finished: bool = False
    """Known only once the search goes on."""

    @property
    def job(self) -> Settings:
        return self.settings

    @property
    def base(self) -> Job:
        """The job that the search starts from, with the keys of `set`."""
        return self.steps[-1].base

    @property
    def corners(self) -> int:
        """Number of settings that were checked."""
        return len(self.checked[-1])

    def environment(self) -> dict[str, str]:
        """Returns the environment variables of the trials' processes."""
        address = node_types.address() if os.environ.get("RAY_ADDRESS") else None
        env = hardware.worker_env(self.base.scale, self.gpu)
        env["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"  # for a stopped trial to end, before its process is replaced
        env["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
        return env | ({"RAY_ADDRESS": address} if address else {})  # a trial obeys its cluster's signals, as a job does

    def identity(self) -> str:
        """Returns a hash of the jobs that the search starts from, to notice if their files were edited."""
        jobs = [step.base.to_dict() | {"run": ""} for step in self.steps]
        return hashlib.sha256(json.dumps(jobs, sort_keys=True).encode()).hexdigest()

    def options(self, t: Trial, step: Step) -> dict[str, Any]:
        """Returns {dotted key: value}, over those of the config and of `set`, of one of a trial's jobs."""
        derived = {} if step.name else _derived(self.settings, t.role)
        return {**derived, **own(t.settings, step.name, self.steps), **step.seeded(t.seed)}

    def half(self, role: Role) -> str:
        """Returns which half of the held-out rows, and of a task's examples, a trial is measured on."""
        return {"confirm": "second"}.get(role, "first") if self.settings.fresh_rows else "both"

    def jobs(self, t: Trial) -> list[Job]:
        """Returns the jobs of a trial in their order. Each has a run directory of its own below that of the search."""
        runs, found = dict[str, str](), list[Job]()
        for step in self.steps:
            run = directory(self.settings.run, t.number) + (f"-{step.name}" if step.name else "")
            found.append(step.job(self.options(t, step) | {"run": run}, runs))
            runs[step.name] = run
        return found

    def yaml(self, t: Trial, run: str) -> str:
        """Returns a trial as a YAML file: for jobs/<stage>.py or, if it has several jobs, for jobs/pipeline.py."""
        if len(self.steps) > 1:
            steps = {
                step.name or self.settings.stage: {
                    "stage": step.stage.name,
                    "config": step.config,
                    "set": step.set | self.options(t, step),
                }
                for step in self.steps
            }
            return yaml.safe_dump({"folder": run, "steps": steps}, sort_keys=False, allow_unicode=True)
        tree = read_yaml(self.settings.config)
        for key, value in {**self.settings.set, **self.options(t, self.steps[0]), "run": run}.items():
            *sections, name = key.split(".")
            inner = tree
            for section in sections:
                inner = inner.setdefault(section, {})
            inner[name] = value
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)

    def lines(self) -> list[tuple[str, str]]:
        """Returns the plan as (label, text) rows of a table."""
        s, known = self.settings, self.before.trials
        limits = [f"{s.budget.trials} trials"] if s.budget.trials is not None else []
        limits += [f"{s.budget.hours:g} hours"] if s.budget.hours is not None else []
        limits += [f"${s.budget.usd:g}"] if s.budget.usd is not None else []
        ended = sum(t.status != "running" for t in known.values())
        each = "all cores and GPUs the cluster has" if s.concurrent is None else f"{s.concurrent} at the same time"
        return [
            ("search", f"{self.settings.config} of jobs/{s.stage}.py → {s.run}"),
            *[("before", f"{x.name}: {x.config} of jobs/{x.stage.name}.py") for x in self.steps[:-1]],
            *[("space", p.text()) for p in self.space.parameters],
            ("checked", f"{self.corners} corners of the space are valid jobs"),
            ("compares", f"{self._compared()}, {'lower' if self.mode == 'min' else 'higher'} is better"),
            ("proposals", f"{s.search}, seed {s.seed}"),
            (
                "stopping",
                f"{s.scheduler}{f' by {s.curve}' if s.scheduler != 'none' else ''}, reports every {s.every} steps",
            ),
            ("budget", " or ".join(limits) or "until the space is used up"),
            (
                "confirms",
                f"the best {s.finalists} and the start, with {s.confirm} other seeds" if s.confirm else "nothing",
            ),
            (
                "rows",
                "compared on one half of the held-out rows and examples, confirmed on the other"
                if s.fresh_rows
                else "all held-out rows",
            ),
            ("trials", f"{each}, {self.base.scale.workers} worker(s) each"),
            *([("goes on", f"{ended} trials have ended, {len(known) - ended} go on")] if known else []),
            *[("note", n) for n in self.notes],
        ]

    def _compared(self) -> str:
        if not metrics.task_of(self.settings.metric):
            return f"{self.settings.metric} at the last report"
        many = f" of {self.examples} examples" if self.examples else ""
        return f"{self.settings.metric}{many}, measured of each finished trial"


def make(settings: Settings) -> Plan:
    """Returns the plan of a search. Raises UsageError listing every problem."""
    problems = checks.numbers(settings)
    settings.config = os.path.abspath(settings.config)
    settings.run = Run(settings.run).path
    found, wrong = space.read(settings.space)
    problems += wrong
    problems += checks.keys(settings)
    problems += checks.combinations(settings, found) if not wrong else []
    if problems:
        raise UsageError("\n".join(problems))
    steps = read(settings)
    base, stage = steps[-1].base, steps[-1].stage
    checked = _corners(settings, steps, found)
    notes = list(dict.fromkeys(note for each in checked for p in each for note in p.notes))
    if settings.scheduler == "pbt" and settings.search == "optuna":
        settings.search = "random"
        notes.append("search: random, since population based training draws its members at random")
    if base.eval.tasks:
        notes.append(
            "eval.tasks: trials are not evaluated on them; make one the metric, or evaluate the runs that you choose"
        )
    examples = evaluation.check(settings, base, _stand_ins(steps)) if metrics.task_of(settings.metric) else None
    if stage.after:
        notes.append(
            f"trials end with training: what jobs/{stage.name}.py does with a trained model is left to best.yaml"
        )
    on = device.settle(base.scale)
    if not on:
        raise UsageError(
            f"RAY_ADDRESS: the cluster at {os.environ['RAY_ADDRESS']} doesn't answer. `ray status` shows whether it is up."
        )
    mode = settings.mode
    if mode == "auto":
        mode = "min" if metrics.lower_is_better(settings.metric) else "max"
    planned = Plan(settings, mode, steps, found, checked, Journal(Run(settings.run)), on.gpu, notes, examples)
    _same(planned)
    return planned


def directory(search: str, number: int) -> str:
    """Returns the run directory of a trial."""
    return f"{search}/trials/{number:04d}"


def _derived(settings: Settings, role: Role) -> dict[str, Any]:
    """Returns the keys of FOLLOWS that a trial's job sets."""
    out: dict[str, Any] = {"train.save_strategy": "steps", "train.save_steps": settings.every}
    if settings.curve.startswith("eval_"):
        out |= {"train.eval_strategy": "steps", "train.eval_steps": settings.every}
    if settings.fresh_rows:
        out["data.heldout_half"] = "second" if role == "confirm" else "first"
    return out


def _stand_ins(steps: list[Step]) -> dict[str, str]:
    """Returns {step: the model that it starts from}, which stands for its run as long as that doesn't exist: tokenizer and size are alike."""
    found = dict[str, str]()
    for step in steps[:-1]:
        found[step.name] = filled(step.base.model.base, found)
    return found


def preflight(planned: Plan) -> None:
    """Has TRL, transformers and PEFT check every corner, as they check a job. Raises UsageError."""
    for step, (first, *others) in zip(planned.steps, planned.checked, strict=True):
        before = len(first.notes)
        with Preflight(step.stage.config, first.job, [p.job for p in others]) as asked:
            asked.ask(first)
        planned.notes += first.notes[before:]


def _corners(settings: Settings, steps: list[Step], found: Space) -> list[list[stage_plan.Plan]]:
    """Checks that every corner of the space is a job that `--dry-run` accepts. Returns their plans, for each step."""
    problems: dict[str, str] = {}
    made: dict[str, list[stage_plan.Plan]] = {step.name: [] for step in steps}
    for corner, step in itertools.product(found.corners(), steps):
        options = (_derived(settings, "search") if not step.name else {}) | own(corner, step.name, steps)
        try:
            job = step.job(options | {"run": f"{settings.run}/corner"}, _stand_ins(steps))
            made[step.name].append(stage_plan.make(Request(job, dry_run=True), step.stage, ask=False))
        except ValueError as e:
            named = f"before.{step.name}: " if step.name else ""
            for line in str(e).replace("train.eval_strategy: steps:", f"metric: {settings.curve}:").splitlines():
                problems.setdefault(named + line, space.short(corner))
    if problems:
        raise UsageError("\n".join(f"{line} (with {corner})" for line, corner in problems.items()))
    return list(made.values())


def _same(planned: Plan) -> None:
    """Raises UsageError if the run directory has another search."""
    settings, run = planned.settings, planned.before.run
    if not run.fs.exists(run.at("search.yaml")):
        if run.exists() and run.files():
            raise UsageError(f"run: {run.path} exists and is not a search. Name another --run.")
        return
    kept = config_file.load(run.read_text("search.yaml").encode())
    kept = config_file.plain(kept)
    now = json.loads(json.dumps(asdict(settings)))
    if not isinstance(kept, dict):
        raise UsageError(f"{run.at('search.yaml')} is damaged. Restore it from a copy, or name another --run.")
    changed = [k for k in now if k not in MAY_CHANGE and kept.get(k) != now[k]]
    if settings.scheduler == "pbt" and kept["budget"]["trials"] != settings.budget.trials:
        changed.append("budget")
    if not changed and kept.get("job_sha256") != planned.identity():
        raise UsageError(
            f"config: {settings.config} has changed since the search in {run.path} began. Put it back, or name another --run."
        )
    if changed:
        raise UsageError(
            "\n".join(f"{k}: the search in {run.path} has {kept.get(k)!r}, this one {now[k]!r}." for k in changed)
            + "\nrun: name another --run for another search."
        )
