"""The keys of a search's YAML, and its command line."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from lib.config import config_file
from lib.config.command_line import Request
from lib.config.dataclass_cli import Typed
from lib.errors import UsageError
from tune import metrics


@dataclass
class Budget:
    """budget: the search ends at whichever limit is reached first"""

    trials: int | None = 20
    """Number of trials, besides the job that the search starts from and the confirmation. None: no limit."""
    hours: float | None = None
    """Wall-clock hours, over all starts of the search; the time that the confirmation will need is kept. None: no limit."""
    usd: float | None = None
    """Dollars: seconds of all trials × usd_per_hour; the cost of the confirmation is kept. None: no limit."""


@dataclass
class Settings:
    """The settings of one search: the job it varies, the space, how trials are chosen and stopped, and the budget."""

    run: str = "runs/tune"
    """Directory of the search: a local path or s3://bucket/path. Each trial is a run of its own in <run>/trials."""
    stage: str = "sft"
    """The stage to search over: a file of jobs/."""
    config: str = "configs/sft.yaml"
    """The job that the search starts from: a YAML file of that stage."""
    before: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Jobs that every trial runs before it, in this order, to search over a chain of stages: {sft: {stage: sft, config: configs/sft.yaml}}, with
    `set` as here. {sft} in `set` of a later job is the run of that one, and the space varies its keys as sft.KEY."""
    set: dict[str, Any] = field(default_factory=dict)
    """Keys of the job that all trials have in common, by their dotted names, over those of `config`."""
    space: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The keys to vary, by their dotted names, in Ray Tune's terms: {train.learning_rate: {loguniform: [1e-4, 1e-2]}}. Others: choice,
    uniform, quniform, randint (its upper end excluded), grid. when: {key: value or list} draws the key only if another one that
    was drawn before has such a value."""
    metric: str = "eval_loss"
    """What trials are compared by: a column of metrics.jsonl, at a trial's last report; or an evaluation task of lib/evals/registry.py, measured
    of each trial that finishes: demo, demo.terse, win_rate, lm_eval:arc_easy."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether a lower or higher metric is better. auto: of a column, min if its name contains loss, otherwise max; of a task, as it says."""
    evaluate: dict[str, Any] = field(default_factory=dict)
    """Keys of jobs/eval.py, by their dotted names, if `metric` is a task: {limit: 100, judge.url: …}. The trial is the run `trial`, which
    win_rate and kl compare with the model that the job starts from, unless runs.NAME names another."""
    stop_by: str | None = None
    """Column of metrics.jsonl by which trials are stopped early if `metric` is a task, which unfinished trials don't have. None: eval_loss."""
    search: Literal["random", "grid", "optuna"] = "optuna"
    """How settings are proposed. optuna: the tree-structured Parzen estimator (Bergstra et al. 2011), 10 random trials first."""
    second_objective: Literal["none", "seconds"] = "none"
    """seconds: optuna proposes trials that are good by the metric, fast, or both (multi-objective TPE, Ozaki et al. 2020); the page shows the
    frontier. The best trial is still the one with the best metric. Only with scheduler: none."""
    scheduler: Literal["none", "asha", "hyperband", "median", "pbt"] = "none"
    """How trials are stopped early. asha: asynchronous successive halving (Li et al. 2020). hyperband: the same with three brackets.
    median: stops a trial that is worse than the median of the others so far. pbt: population based training of budget.trials members (Jaderberg
    et al. 2017), in generations of `every` steps; it varies only train.learning_rate and train.weight_decay."""
    every: int = 10
    """Steps between a trial's reports. At each, the held-out loss is measured and a checkpoint is written, from which a stopped trial can go
    on. The first report is the earliest moment at which a scheduler stops a trial."""
    halving: float = 3.0
    """asha and hyperband: one in `halving` trials goes on past each rung; rungs are `every` × halving^k steps."""
    confirm: int = 3
    """Number of other seeds with which the finalists and the job that the search starts from are trained again. 0: no confirmation, and so no
    claim that a setting is better."""
    finalists: int = 2
    """Number of best trials that are confirmed."""
    fresh_rows: bool = True
    """true: trials are compared on one half of the held-out rows and finalists on the other half, which had no part in the choice. false: all
    rows for both; then the reported gain is partly luck."""
    budget: Budget = field(default_factory=Budget)
    concurrent: int | None = None
    """Number of trials at the same time. None: as many as the cluster has room for."""
    usd_per_hour: float = 0.0
    """Hourly price in USD of the machine share that one trial uses, for costs and budget.usd. 0: no costs are shown."""
    retries: int = 3
    """How often a trial goes on from its last checkpoint after its process or node was lost. -1: no limit."""
    seed: int = 0
    """Seed of the proposals. The trials' own seed is train.seed."""

    @staticmethod
    def of(kept: dict[str, Any]) -> Settings:
        """Returns the settings of asdict(settings)."""
        return Settings(**kept | {"budget": Budget(**kept["budget"])})

    @property
    def program(self) -> str:
        """The name in jobs/ of the program that trains best.yaml."""
        return "pipeline" if self.before else self.stage

    @property
    def curve(self) -> str:
        """The column of metrics.jsonl by which the scheduler compares trials."""
        return self.stop_by or ("eval_loss" if metrics.task_of(self.metric) else self.metric)

    def curve_mode(self, mode: str) -> str:
        """Returns min or max for `curve`. mode: of the metric."""
        return mode if self.curve == self.metric else "min" if "loss" in self.curve else "max"

    def usd(self, seconds: float) -> float:
        """Returns the cost in USD of that much trial time."""
        return seconds / 3600 * self.usd_per_hour


USAGE = "python -m tune --config configs/tune/sft.yaml [--KEY VALUE …] [--dry-run]"
KEYS = Typed("tune", Settings, USAGE, in_file=("config",))


def parse(argv: list[str] | None = None) -> Request:
    """Parses the arguments. Raises UsageError for an unknown key (with the nearest known one), a wrong type or an unreadable file.

    --set.KEY VALUE, --space.KEY VALUE and --evaluate.KEY VALUE add a key, whose name may have dots of its own, to those of the file.
    """
    rest, added = [], {name: dict[str, Any]() for name in ("set", "space", "evaluate")}
    words = iter(sys.argv[1:] if argv is None else argv)
    for word in words:
        option, given, value = word.partition("=")
        section, _, key = option.removeprefix("--").partition(".")
        if not option.startswith("--") or section not in added or not key:
            rest.append(word)
            continue
        value = value if given else next(words, "")
        try:
            added[section][key] = config_file.plain(config_file.load(value.encode()))
        except yaml.YAMLError as e:
            raise UsageError(f"{option}: {value} is not valid YAML: {' '.join(str(e).split())}") from None
    values, dry_run, _ = KEYS.read(rest)
    return Request(Settings(**values | {name: values[name] | more for name, more in added.items()}), dry_run)
