"""Checks a search before Ray starts, and makes the plan that is printed."""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from lib.config import config_file
from lib.config.command_line import Request
from lib.config.config_file import read_yaml
from lib.config.job import SECTIONS, Job
from lib.errors import UsageError, nearest
from lib.run import Run
from lib.runtime import device, hardware, node_types
from lib.stage import plan as stage_plan
from lib.stage import training_cli
from lib.stage.stage import Stage
from tune import space
from tune.journal import Journal, Role, Trial
from tune.population import CHANGES
from tune.settings import Settings
from tune.space import Space

JOBS = Path(__file__).parent.parent / "jobs"
FOLLOWS = {
    "run": "run",
    "train.eval_strategy": "every",
    "train.eval_steps": "every",
    "train.save_strategy": "every",
    "train.save_steps": "every",
    "train.load_best_model_at_end": "every",
    "data.heldout_half": "fresh_rows",
}
"""{key of the job that a search sets: the key of the search that it follows from}"""
SHARED = {
    "scale.workers": "all trials need the same processes",
    "scale.min_workers": "all trials need the same processes",
    "scale.cpus_per_worker": "all trials need the same processes",
    "scale.device": "all trials need the same processes",
    "train.seed": "the best seed is luck; `confirm` varies it",
    "train.data_seed": "the best seed is luck; `confirm` varies it",
    "data.heldout": "trials must be compared on the same rows",
    "data.heldout_fraction": "trials must be compared on the same rows",
    "data.heldout_limit": "trials must be compared on the same rows",
}
"""{key that must be the same for all trials, and so belongs under `set`: why}"""
SCALES_LOSS = (
    "beta",
    "loss_type",
    "label_smoothing",
    "label_smoothing_factor",
    "temperature",
    "lmbda",
    "loss_weights",
    "alpha",
    "gamma",
)
"""Keys of `train` that change what the loss measures, so that a lower one is not better."""
MAY_CHANGE = ("budget", "concurrent", "retries", "usd_per_hour", "run", "confirm", "finalists")
"""Keys of the search that may differ when it goes on, because no proposal depends on them."""


@dataclass
class Plan:
    settings: Settings
    """With absolute paths."""
    mode: str
    """min or max."""
    stage: Stage
    space: Space
    base: Job
    """The job that the search starts from, with the keys of `set`."""
    corners: int
    """Number of settings that were checked."""
    before: Journal
    """What an earlier start of the search has done."""
    gpu: bool
    """Whether trials use GPUs."""
    notes: list[str]
    finished: bool = False
    """Known only once the search goes on."""

    @property
    def job(self) -> Settings:
        return self.settings

    def environment(self) -> dict[str, str]:
        """Returns the environment variables of the trials' processes."""
        address = node_types.address() if os.environ.get("RAY_ADDRESS") else None
        env = hardware.worker_env(self.base.scale, self.gpu)
        env["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = (
            "60"  # how long a stopped trial may take to end before its process is replaced
        )
        env["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
        return env | ({"RAY_ADDRESS": address} if address else {})  # a trial obeys its cluster's signals, as a job does

    def options(self, t: Trial, run: str) -> dict[str, Any]:
        """Returns {dotted key: value}, over those of the config, of the job of a trial."""
        found = {**self.settings.set, **_derived(self.settings, t.role), **t.settings, "run": run}
        if t.seed:
            for key in ("train.seed", "train.data_seed"):
                now = self.base.train.get(key[6:], 42 if key == "train.seed" else None)  # 42: TrainingArguments' own
                found |= {key: now + t.seed} if now is not None else {}
        return found

    def trial(self, t: Trial) -> Job:
        """Returns the job of a trial: a run directory of its own below that of the search."""
        return _job(self.settings, self.stage, self.options(t, directory(self.settings.run, t.number)))

    def yaml(self, t: Trial, run: str) -> str:
        """Returns a trial's job as a YAML file for jobs/<stage>.py."""
        tree = read_yaml(self.settings.config)
        for key, value in self.options(t, run).items():
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
            *[("space", p.text()) for p in self.space.parameters],
            ("checked", f"{self.corners} corners of the space are valid jobs"),
            ("compares", f"{s.metric} at the last report, {'lower' if self.mode == 'min' else 'higher'} is better"),
            ("proposals", f"{s.search}, seed {s.seed}"),
            ("stopping", f"{s.scheduler}, reports every {s.every} steps"),
            ("budget", " or ".join(limits) or "until the space is used up"),
            (
                "confirms",
                f"the best {s.finalists} and the start, with {s.confirm} other seeds" if s.confirm else "nothing",
            ),
            (
                "rows",
                "compared on one half of the held-out rows, confirmed on the other"
                if s.fresh_rows
                else "all held-out rows",
            ),
            ("trials", f"{each}, {self.base.scale.workers} worker(s) each"),
            *([("goes on", f"{ended} trials have ended, {len(known) - ended} go on")] if known else []),
            *[("note", n) for n in self.notes],
        ]


def make(settings: Settings) -> Plan:
    """Returns the plan of a search. Raises UsageError listing every problem."""
    problems = _numbers(settings)
    stage = _stage(settings.stage)
    settings.config = os.path.abspath(settings.config)
    settings.run = Run(settings.run).path
    found, wrong = space.read(settings.space)
    problems += wrong
    for key in (*settings.set, *settings.space):
        where = "space" if key in settings.space else "set"
        if key in (*SECTIONS, "train", "model.lora"):
            problems.append(f"{where}.{key}: is a section. Name its key with dots: {key}.NAME.")
        elif key in FOLLOWS:
            problems.append(f"{where}.{key}: can't be set: it follows from {FOLLOWS[key]}.")
        elif where == "space" and key in settings.set:
            problems.append(f"space.{key}: is also in `set`. Leave it out of one of them.")
        elif where == "space" and key in SHARED:
            problems.append(f"space.{key}: must not vary: {SHARED[key]}.")
        elif where == "space" and "loss" in settings.metric and key.removeprefix("train.") in SCALES_LOSS:
            problems.append(
                f"metric: {settings.metric} means something else at each {key}. Compare by another column, such as an accuracy."
            )
    if settings.search == "grid" and not wrong:
        try:
            found.grid()
        except ValueError as e:
            problems.append(str(e))
    if settings.scheduler == "pbt":
        problems += _of_population(settings, found)
    if problems:
        raise UsageError("\n".join(problems))
    base = _job(settings, stage, settings.set | {"run": f"{settings.run}/trials"})
    corners, notes = _corners(settings, stage, found)
    if settings.scheduler == "pbt" and settings.search == "optuna":
        settings.search = "random"
        notes.append("search: random, since population based training draws its members at random")
    before = Journal(Run(settings.run))
    _same(settings, before)
    on = device.settle(base.scale)
    if not on:
        raise UsageError(
            f"RAY_ADDRESS: the cluster at {os.environ['RAY_ADDRESS']} doesn't answer. `ray status` shows whether it is up."
        )
    mode = settings.mode
    if mode == "auto":
        mode = "min" if "loss" in settings.metric else "max"
    return Plan(settings, mode, stage, found, base, corners, before, on.gpu, notes)


def directory(search: str, number: int) -> str:
    """Returns the run directory of a trial."""
    return f"{search}/trials/{number:04d}"


def _numbers(s: Settings) -> list[str]:
    out = []
    for key, value, low in (
        ("every", s.every, 1),
        ("concurrent", s.concurrent, 1),
        ("budget.trials", s.budget.trials, 1),
        ("retries", s.retries, -1),
        ("usd_per_hour", s.usd_per_hour, 0),
        ("seed", s.seed, 0),
        ("confirm", s.confirm, 0),
        ("finalists", s.finalists, 1),
    ):
        if value is not None and not low <= value < 2**32:
            out.append(f"{key}: must be at least {low}, is {value}.")
    for key, amount in (("budget.hours", s.budget.hours), ("budget.usd", s.budget.usd)):
        if amount is not None and not 0 < amount < float("inf"):
            out.append(f"{key}: must be above 0, is {amount}.")
    if not 1 < s.halving < 1e6:
        out.append(f"halving: must be above 1, is {s.halving}.")
    if s.budget.usd is not None and not s.usd_per_hour:
        out.append("budget.usd: set usd_per_hour, from which the cost is computed.")
    if s.search != "grid" and (s.budget.trials, s.budget.hours, s.budget.usd) == (None, None, None):
        out.append("budget: set trials, hours or usd: the search would never end.")
    if not s.metric.strip():
        out.append("metric: is empty. Name a column of metrics.jsonl, such as eval_loss.")
    return out


def _of_population(s: Settings, found: Space) -> list[str]:
    """Returns the problems of a search with population based training."""
    out = []
    for p in found.parameters:
        if p.key not in CHANGES:
            out.append(
                f"space.{p.key}: can't change during training. With scheduler: pbt, vary only {' and '.join(CHANGES)}."
            )
        elif p.when:
            out.append(f"space.{p.key}: when can't be combined with scheduler: pbt.")
        elif not all(isinstance(v, int | float) and v > 0 for v in p.ends()):
            out.append(f"space.{p.key}: must stay above 0 with scheduler: pbt.")
    out += [f"set.{key}: can't be set: it follows from scheduler: pbt." for key in CHANGES.values() if key in s.set]
    if s.search == "grid":
        out.append("search: grid can't be combined with scheduler: pbt, whose members are drawn at random.")
    if (s.budget.trials or 0) < 2:
        out.append(
            f"budget.trials: must be at least 2 with scheduler: pbt, the members of the population, is {s.budget.trials}."
        )
    return out


def _stage(name: str) -> Stage:
    found: dict[str, Stage] = {}
    for path in JOBS.glob("*.py"):
        if path.stem.isidentifier() and path.stem != "__init__":
            made = getattr(importlib.import_module(f"jobs.{path.stem}"), "STAGE", None)
            found |= {path.stem: made} if isinstance(made, Stage) else {}
    if name not in found:
        raise UsageError(
            f"stage: there is no training stage {name}. Known: {', '.join(sorted(found))}.{nearest(name, found)}"
        )
    return found[name]


def _derived(settings: Settings, role: Role) -> dict[str, Any]:
    """Returns the keys of FOLLOWS that a trial's job sets."""
    out: dict[str, Any] = {"train.save_strategy": "steps", "train.save_steps": settings.every}
    if settings.metric.startswith("eval_"):
        out |= {"train.eval_strategy": "steps", "train.eval_steps": settings.every}
    if settings.fresh_rows:
        out["data.heldout_half"] = "second" if role == "confirm" else "first"
    return out


def _job(settings: Settings, stage: Stage, options: dict[str, Any]) -> Job:
    argv = ["--config", settings.config]
    argv += [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in options.items()]
    job: Job = training_cli.parse(stage, argv).job
    return job


def _corners(settings: Settings, stage: Stage, found: Space) -> tuple[int, list[str]]:
    """Checks that every corner of the space is a job that `--dry-run` accepts. Returns (how many there are, the plans' notes)."""
    problems: dict[str, str] = {}
    notes: dict[str, None] = {}
    corners = found.corners()
    for corner in corners:
        options = settings.set | _derived(settings, "search") | corner | {"run": f"{settings.run}/corner"}
        try:
            planned = stage_plan.make(Request(_job(settings, stage, options), dry_run=True), stage, ask=False)
            notes |= dict.fromkeys(planned.notes)
        except ValueError as e:
            for line in str(e).replace("train.eval_strategy: steps:", f"metric: {settings.metric}:").splitlines():
                problems.setdefault(line, space.short(corner))
    if problems:
        raise UsageError("\n".join(f"{line} (with {corner})" for line, corner in problems.items()))
    return len(corners), list(notes)


def _same(settings: Settings, before: Journal) -> None:
    """Raises UsageError if the run directory has another search."""
    run = before.run
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
    if changed:
        raise UsageError(
            "\n".join(f"{k}: the search in {run.path} has {kept.get(k)!r}, this one {now[k]!r}." for k in changed)
            + "\nrun: name another --run for another search."
        )
