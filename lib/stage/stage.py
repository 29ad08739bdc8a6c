"""A stage as data: what a file in jobs/ declares, and all that the driver, the planner and the workers need to know of it.

Nothing here imports torch, TRL or Ray, nor does a file in jobs/ before `build` is called, so that a stage can be read in
milliseconds: `python -m cluster plan` imports them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from transformers import Trainer

    from lib.config import Job
    from lib.data import Loaded
    from lib.run import Run

Makes = Literal["causal_lm", "seq2seq_lm", "masked_lm", "encoder", "discriminator", "reward", "adapter"]
"""Kinds of model/. causal_lm: writes text. reward: a score for a whole conversation. encoder: embeddings. adapter: base and adapter/,
which can't be merged."""


@dataclass(frozen=True)
class Stage:
    """A stage that trains a model with a transformers.Trainer."""

    name: str
    """Of the file in jobs/, and of configs/NAME.yaml."""
    config: str
    """ "module:Class" of the TRL config whose fields `train:` takes."""
    rows: tuple[str, ...]
    """Kinds of rows it can learn from, best first (lib/data/rows.py)."""
    build: Callable[[Job, Any, Loaded], Trainer]
    """build(job, args, inputs): the trainer, on every worker. args: an object of `config`; inputs: the rows, before any template or
    tokenizer. A ValueError ends the job at once."""
    makes: Makes = "causal_lm"
    """What model/ of its runs is: which class loads it, and which jobs, tasks and servers accept it."""
    starts_from: tuple[Makes, ...] = ("causal_lm",)
    """Kinds of model that model.base may be."""
    names: dict[str, Makes] = field(default_factory=dict)
    """Keys of `train` that name another model, with the kind it has to be: {"teacher": "causal_lm"}."""
    check: Callable[[Job, Any], None] | None = None
    """check(job, args) raises ValueError, naming the key, for settings that conflict. args: has the fields of `config`."""
    after: Callable[[Run, Job], bool] | None = None
    """after(run, job): what is left to do with the trained model on held-out rows, whenever the command is run. Returns whether the
    result is what was promised; the job exits with 1 if not."""


class WorkPlan(Protocol):
    """What a work stage found out about a request before it starts."""

    job: Any
    """The request as a dataclass; job.run is the run directory."""
    finished: bool
    """There is nothing left to do."""

    def lines(self) -> list[tuple[str, str]]:
        """(label, text) rows of the plan that is printed."""


@dataclass(frozen=True)
class WorkStage:
    """A stage that makes something without a Trainer: a report, a quantised model, rows."""

    name: str
    makes: Makes | Literal["report", "rows"]
    parse: Callable[[list[str] | None], Any]
    """parse(argv): the request, whose `job` is a dataclass with `run`, and which has `dry_run` and `resume`. Raises UsageError."""
    plan: Callable[[Any], WorkPlan]
    """plan(request). Raises UsageError listing every problem."""
    work: Callable[[Any, str], bool]
    """work(plan, command): does it, with Ray connected, and prints what was found. Returns whether what was asked for holds (a gate).
    command: what the user typed, for the report."""
    resumes: bool = True
    """Whether `--resume RUN` goes on; otherwise the same command does."""
