"""Validates a training job before any worker starts or weight is loaded, and makes the plan that is printed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from lib import data
from lib.config import trl_fields
from lib.config.adapters import ADAPTERS
from lib.config.command_line import Request
from lib.config.job import Job
from lib.distributed import strategy
from lib.errors import UsageError
from lib.models import adapter_limits, from_scratch, load, locate, quantized_formats
from lib.rendering import sample
from lib.run import Run, absolute
from lib.runtime import checkpoint, device, integrity, logs, resume
from lib.runtime.device import Device
from lib.stage import limits
from lib.stage.stage import Stage

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Plan:
    job: Job
    """The job with absolute paths and a located base model."""
    identities: dict[str, str]
    """{key: identity of the weights}, for model.base and the keys of `train` that name models (see lib/models/locate.py locate)."""
    check: data.Check
    """Format, rows, held-out rows, content hash."""
    device: Device | None
    """None: decided after the cluster is joined."""
    finished: bool
    """The run in job.run is already complete."""
    notes: list[str]
    """Remarks that the plan prints."""
    template: str | None
    """Text of the chat template. None: it can't be read without a download."""
    rendered: sample.Rendered | None
    """A sample of the rows as the model will see them. None: the tokenizer is not available locally."""
    shape: str = ""
    """What model.base: none became; "" for other bases."""

    def _adapter(self) -> str:
        m = self.job.model
        chosen = ADAPTERS[m.adapter]
        rank = getattr(trl_fields.filled(chosen.config, chosen.defaults | m.peft), chosen.rank, None)
        if chosen.soft:
            return f"{chosen.title}: {rank} vectors in front of every row, which become tokens at the end"
        default = "" if "target_modules" in m.peft else "in PEFT's default modules"
        where = f" {chosen.where or default}".rstrip()
        end = (
            "merged at the end" if chosen.merges else "which can't be merged: evaluated and served by transformers only"
        )
        size = "" if not rank else f": {rank}" if chosen.rank == "num_virtual_tokens" else f" r={rank}"
        return f"{chosen.title}{size}{where}, {end}"

    def _rewards(self) -> str:
        weights = self.job.rewards or {}
        terms = [f"{weight:g} × {name}" for name, weight in weights.items() if weight]
        measured = [name for name, weight in weights.items() if not weight]
        s = self.rendered.settings if self.rendered else None
        each = f"{s.answers} answers" if s and s.answers > 1 else "an answer"
        drawn = f"; {each} to each prompt, up to {s.answer_tokens} tokens" if s else ""
        others = self.job.rollouts.workers if self.job.rollouts else 0
        by = f", drawn by {others} rollout worker{'s' * (others > 1)}" if others else ""
        return " + ".join(terms) + drawn + by + (f"; measured only: {', '.join(measured)}" if measured else "")

    def lines(self) -> list[tuple[str, str]]:
        """Returns the plan as (label, text) rows of a table."""
        j, s = self.job, self.job.scale
        low = s.min_workers or s.workers
        sizes = {n: strategy.split_batch(s.global_batch, s.micro_batch, n) for n in sorted({low, s.workers})}
        batches = [
            f"{n} workers × {each} examples × {accumulated} accumulated" for n, (each, accumulated) in sizes.items()
        ]
        rows = self.rendered.rows(self.check.rows) if self.rendered else self.check.rows
        steps = j.train.get("max_steps") or -1
        if steps > 0:
            length = f"{steps} steps"
        elif rows:
            epochs = j.train.get("num_train_epochs", 3.0)
            noun = "answers" if j.rewards else "rows"
            length = f"{epochs:g} epochs of {rows:,} {noun} ≈ {int(epochs * -(-rows // s.global_batch)):,} steps"
            if rows % s.global_batch and epochs >= 1 and not j.train.get("dataloader_drop_last"):
                length += ", the last step of each epoch filled up with rows of that epoch"
        else:
            length = f"{j.train.get('num_train_epochs', 3.0):g} epochs"
        trains = "all weights" if j.model.adapter == "none" else self._adapter()
        trains += "" if j.model.quantization == "none" else f", base in {j.model.quantization}"
        trains += "" if j.model.qat == "none" else f", rounded as {j.model.qat} while they train"
        where = os.environ.get("RAY_ADDRESS") or "a Ray started here"
        on = ("GPU" if self.device.gpu else "CPU") if self.device else "on what the cluster has"
        return [
            ("stage", f"jobs/{j.stage}.py → {j.run}"),
            ("base", self.shape or f"{j.model.base}  ({self.identities['model.base']})"),
            ("trains", trains),
            *[("data", line.removeprefix("data: ")) for line in self.check.lines()],
            *[
                (name.replace("_", " "), f"{j.train[name]}  ({identity})")
                for key, identity in self.identities.items()
                if (name := key.removeprefix("train.")) in j.train
            ],
            *([("model sees", self.rendered.line())] if self.rendered else []),
            ("batch", f"{s.global_batch} examples a step = " + " or ".join(batches)),
            *([("rewards", self._rewards())] if j.rewards else []),
            ("length", length),
            ("scale", f"{s.strategy} on {where}, {on}, precision {s.precision}"),
            *([("device", self.device.why)] if self.device and self.device.why else []),
            logs.line(Run(j.run)),
            *[("note", n) for n in self.notes],
            *(self.rendered.shown if self.rendered else []),
        ]


def _reward_runs(job: Job, attempt: Callable) -> tuple[Job, dict[str, str]]:
    """Returns (the job with located reward runs in `rewards`, {key: identity} of each)."""
    weights, identities = {}, {}
    for name, weight in (job.rewards or {}).items():
        if name.startswith("run:") and (
            found := attempt(locate.locate_for, f"rewards.{name}", name.removeprefix("run:"))
        ):
            attempt(locate.require, f"rewards.{name}", found[0], ("reward",))
            name, identities[f"rewards.{name}"] = f"run:{found[0]}", found[1]
        weights[name] = weight
    return replace(job, rewards=weights), identities


def make(request: Request, stage: Stage, ask: bool = True) -> Plan:
    """Validates a request and returns its plan. Raises UsageError listing every problem.

    ask: whether to choose the device, for which the cluster is queried; if False, Plan.device stays None.
    """
    job = request.job
    problems: list[str] = []
    notes = [*request.notes]
    run = Run(job.run)

    def attempt(f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return f(*args, **kwargs)
        except ValueError as e:
            problems.append(str(e))
            return None

    if stage.check:
        attempt(stage.check, job, trl_fields.filled(stage.config, job.train))
    if stage.starts_from is None and request.resume:
        job = replace(job, model=from_scratch.resumed(job.model, run))
    if stage.starts_from is None and job.model.base == "none":
        located, shape = attempt(from_scratch.base, job, stage.rows) or (None, "")
    else:
        located, shape = attempt(locate.locate, job.model.base, job.model.revision), ""
    base, identity = located or (job.model.base, "")
    identities = {"model.base": identity}
    if located:
        problems += limits.revision(job.model.revision, base)
        attempt(quantized_formats.refuse, "model.base", base, "trained")
        own = stage.kind(job.train)
        attempt(
            locate.require,
            "model.base",
            base,
            stage.starts_from or ((own, "encoder") if own == "masked_lm" else (own,)),
        )
        if stage.starts_from is None and (new := from_scratch.new_heads(base, job.train.get("objective", ""))):
            notes.append(f"model.base has no head for {' and '.join(new)}: it starts from random weights")
    if shape:
        job = replace(job, model=from_scratch.asked(job.model))
    if located and base.startswith("package:") and not job.model.base.startswith("package:"):
        notes.append(f"no model hub can be reached: using the same weights from the installed package {base[8:]}")
    for key, kind in (stage.names | stage.may_name).items():
        if key in stage.may_name and job.train.get(key) is None:
            continue
        if (job.train.get(key) or "").startswith("serve:"):
            if not os.environ.get("RAY_ADDRESS"):
                problems.append(
                    f"train.{key}: {job.train[key]} can only be reached from the cluster that it runs in. Submit the job there, or set RAY_ADDRESS."
                )
        elif not job.train.get(key):
            problems.append(f"train.{key}: name a model, such as runs/sft.")
        elif found := attempt(locate.locate_for, f"train.{key}", job.train[key]):
            attempt(locate.require, f"train.{key}", found[0], (kind,))
            job = replace(job, train=job.train | {key: found[0]})
            identities[f"train.{key}"] = found[1]
    if job.rewards:
        job, named = _reward_runs(job, attempt)
        identities |= named
    template = job.model.chat_template
    if template:  # relative to the working directory (on a cluster the uploaded code), else to where runs are stored
        template = os.path.abspath(template) if os.path.exists(template) else absolute(template)
    if template and not Path(template).is_file():
        problems.append(f"model.chat_template: there is no file {template}.")
    seen = sample.Sample(base)
    checked = attempt(data.check, job.data, stage.rows, True, seen.keep)
    if stage.after and checked:
        attempt(checked.need_heldout)
    if checked:
        attempt(checked.need_both_labels)
    if stage.fits and checked:
        attempt(stage.fits, job, trl_fields.filled(stage.config, job.train), checked)
    on = attempt(device.settle, job.scale) if ask else None
    problems += limits.problems(job, bool(on and on.gpu)) + (limits.heldout(job, checked) if checked else [])
    job = replace(
        job, run=run.path, model=replace(job.model, base=base, chat_template=template), data=data.absolute(job.data)
    )
    text = load.template_text(job.model) if not problems else None
    finished = False
    if run.is_run():
        finished = run.finished()
        if request.resume:
            problems += resume.problems(run, job, identities, checked, text)
            if finished and not problems and (why := integrity.damage(run)):
                finished, (step, _) = False, checkpoint.latest(run)
                after = f"from checkpoint-{step}" if step else "by training again: no checkpoint is whole"
                notes.append(f"{why}; it is rebuilt {after}")
        else:
            status = run.provenance().get("status", "before its first step")
            state = "is finished" if finished else f"stopped ({status})"
            there = f"{run.path} already holds a run, which {state}. Continue with --resume {shlex.quote(job.run)}, or name another --run."
            # A dry run writes nothing, so an existing run is no error.
            notes.append(there) if request.dry_run else problems.append(f"run: {there}")
    elif run.exists() and run.files():
        problems.append(f"run: {run.path} exists and is not a run. Name another --run.")
    rendered = None
    if checked and not problems:  # last, because it takes about a second
        rendered, problems, more = sample.look(job, stage.config, seen, checked.complete, request.dry_run)
        checked.rendered, notes = rendered.summary() if rendered else None, notes + more
        problems += adapter_limits.steps(job, rendered.rows(checked.rows) if rendered else checked.rows)
    if problems or not checked:  # rows that can't be checked are a problem
        raise UsageError("\n".join(dict.fromkeys(problems)))
    return Plan(job, identities, checked, on, finished, notes, text, rendered, shape)
