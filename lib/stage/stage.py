"""A stage as data: the declaration in each file of jobs/, which the driver, the planner and the workers read.

This module doesn't import torch, TRL or Ray, and the files in jobs/ import them only once `build` is called. A stage therefore
imports in milliseconds, and `python -m cluster plan` can import all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lib.config.adapters import merges

if TYPE_CHECKING:
    from transformers import Trainer

    from lib.config.job import Job
    from lib.data import Check, Loaded
    from lib.run import Run

Makes = Literal["causal_lm", "seq2seq_lm", "masked_lm", "encoder", "discriminator", "classifier", "reward", "adapter"]
"""Kinds of model in model/. causal_lm: generates text. reward: scores a whole conversation. encoder: computes embeddings.
classifier: gives a text, or a pair of texts, a class or a score. adapter: generates text too, with base/ and adapter/ in model/, which can't be merged (lib/models/unmerged.py)."""


@dataclass(frozen=True)
class Stage:
    """A stage that trains a model with a transformers.Trainer."""

    name: str
    """Name of the file in jobs/, and of configs/NAME.yaml or the folder configs/NAME/."""
    config: str
    """ "module:Class" of the TRL config class whose fields are the keys of `train:`."""
    rows: tuple[str, ...]
    """Kinds of rows that the stage can train on, preferred first (lib/data/rows.py)."""
    build: Callable[[Job, Any, Loaded], Trainer]
    """build(job, args, inputs) returns the trainer; called on every worker. args: an instance of `config`. inputs: the rows, before
    the chat template and tokenizer are applied. A ValueError ends the job without a retry."""
    makes: Makes | dict[str, Makes] = "causal_lm"
    """Kind of model in model/ of the stage's runs. It determines the class that loads the model and the jobs, tasks and servers that
    accept it. A dict: {value of train.objective: kind}, the first for the default."""
    starts_from: tuple[Makes, ...] | None = ("causal_lm",)
    """Kinds of model accepted as model.base. None: the kind that the stage makes, or `none` (lib/models/from_scratch.py), or for
    masked_lm an encoder, with a new head."""
    names: dict[str, Makes] = field(default_factory=dict)
    """{key of `train` that names another model: the kind required of it}, such as {"teacher": "causal_lm"}."""
    may_name: dict[str, Makes] = field(default_factory=dict)
    """The same for keys that may be left out."""
    check: Callable[[Job, Any], None] | None = None
    """check(job, args) raises ValueError, naming the key, if settings conflict. args: an object with the fields of `config`."""
    fits: Callable[[Job, Any, Check], None] | None = None
    """fits(job, args, checked) raises ValueError, naming the key, if the rows that were checked don't suit the settings."""
    rewarded: bool = False
    """Whether the stage learns from rewards, which its jobs name in the section `rewards` (lib/methods/rl/rewards.py)."""
    after: Callable[[Run, Job], bool] | None = None
    """after(run, job) works on the trained model with held-out rows, each time the command is run. Returns whether the result passes
    the stage's gate; if not, the job exits with 1."""

    @property
    def example(self) -> str:
        """The configuration that its help names."""
        objective = "" if isinstance(self.makes, str) else f"/{next(iter(self.makes))}"
        return f"configs/{self.name}{objective}.yaml"

    def kind(self, train: dict, adapter: str = "none") -> Makes:
        """Returns what a run with these settings makes. train: the keys of `train` that were given; adapter: model.adapter."""
        if self.makes == "causal_lm" and not merges(adapter):
            return "adapter"
        if isinstance(self.makes, str):
            return self.makes
        return self.makes.get(train.get("objective"), next(iter(self.makes.values())))  # type: ignore[arg-type]


class WorkPlan(Protocol):
    """The plan of a work stage, made before any work starts."""

    @property
    def job(self) -> Any:
        """The request as a dataclass; job.run is the run directory."""

    finished: bool
    """The run is already complete."""

    def lines(self) -> list[tuple[str, str]]:
        """Returns the plan as (label, text) rows of a table."""


@dataclass(frozen=True)
class WorkStage:
    """A stage that works without a Trainer and makes a report, a quantised model or rows."""

    name: str
    makes: Makes | Literal["report", "rows"]
    parse: Callable[[list[str] | None], Any]
    """parse(argv) returns the request: an object with `job` (a dataclass with `run`), `dry_run` and `resume`. Raises UsageError."""
    plan: Callable[[Any], WorkPlan]
    """plan(request) returns the WorkPlan. Raises UsageError listing every problem."""
    work: Callable[[Any, str], bool]
    """work(plan, command) does the work, with Ray connected, and prints the results. Returns whether the requested gate passes.
    command: the user's command line, for the report."""
    program: str = ""
    """How the command line starts. "": jobs/NAME.py."""
    environment: Callable[[Any], dict[str, str]] | None = None
    """environment(plan) returns environment variables for the processes that `work` starts in Ray. Their output stays in Ray's logs then,
    since they write logs of their own."""
    resumes: bool = True
    """Whether `--resume RUN` continues an interrupted run. If False, rerunning the same command does."""
