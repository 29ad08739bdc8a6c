"""The configuration of jobs/merge.py, and every check that needs no model in memory."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from lib.config import command_line, ranges
from lib.config.command_line import Request
from lib.config.dataclass_cli import Typed
from lib.errors import UsageError, nearest
from lib.generation.model_spec import Spec, find
from lib.models import quantized_formats
from lib.run import Run
from lib.runtime import logs

DENSITY = {"ties": 0.2, "dare_linear": 0.5, "dare_ties": 0.5}
"""{method: its density unless another is given}. ties: that of its paper, section 4."""


@dataclass
class Start:
    base: str | None = None
    """The model that the runs were trained from: a run directory, a folder or a hub name. None: the base that all of them record."""


@dataclass
class MergeJob:
    """One merge: the models, the method, and the weight of each model."""

    run: str = "runs/merge"
    """The run directory to write: a local path or s3://bucket/path."""
    runs: dict[str, str] = field(default_factory=dict)
    """The models to merge, as {name: run directory, folder or hub name}. The tokenizer and chat template are those of the first."""
    model: Start = field(default_factory=Start)
    method: Literal["linear", "ties", "dare_linear", "dare_ties"] = "linear"
    """How changes of the base are combined, with formulas and papers: lib/methods/model_merging/combine.py."""
    weights: dict[str, float] = field(default_factory=dict)
    """{name in runs: its weight}. Without any: with linear and dare_linear all are 1 / number of runs, which gives a mean; with ties and
    dare_ties all are 1, since they take a mean themselves."""
    density: float | None = None
    """Share of each run's changes that is kept, in (0, 1]. None: 0.2 for ties, 0.5 for dare_linear and dare_ties. linear keeps all."""
    seed: int = 0
    """Seed of what dare_linear and dare_ties leave out."""


USAGE = "python jobs/merge.py --config configs/merge.yaml [--KEY VALUE …] [--dry-run]"
KEYS = Typed("merge", MergeJob, USAGE, ("runs", "weights"))


def parse(argv: list[str] | None = None) -> Request:
    """Parses `argv` (None: sys.argv). Raises UsageError for an unknown key, a wrong type or an unreadable file."""
    argv = sys.argv[1:] if argv is None else argv
    d, dry_run, _ = KEYS.read(argv)
    return Request(MergeJob(**d), dry_run, config=command_line.option(argv, "--config"))


@dataclass
class Plan:
    job: MergeJob
    """With absolute paths, and every weight and the density filled in."""
    start: Spec
    specs: list[Spec]
    """The models to merge, in the order of job.runs."""
    finished: bool

    def lines(self) -> list[tuple[str, str]]:
        """Returns rows (label, text) for a table."""
        j = self.job
        share = "" if j.density is None else f", keeps {j.density:g} of each run's changes"
        return [
            ("stage", f"jobs/merge.py → {j.run}"),
            ("base", f"{self.start.base}  ({self.start.identity})"),
            *[("merges", f"{j.weights[s.name]:g} × {s.name}: {s.base}  ({s.identity})") for s in self.specs],
            ("method", f"{j.method}{share}"),
            logs.line(Run(j.run)),
        ]


def plan(request: Request) -> Plan:
    """Checks a MergeJob. Raises UsageError listing every problem found, one a line, each naming its key."""
    job: MergeJob = request.job
    problems = ranges.values({"seed": job.seed})

    def attempt(f, *args):
        try:
            return f(*args)
        except ValueError as e:
            problems.append(str(e))

    if not job.runs:
        problems.append("runs: there are none. Name those to merge, such as --runs.sft runs/sft --runs.cot runs/cot.")
    for name in job.weights.keys() - job.runs.keys():
        problems.append(f"weights.{name}: there is no run of that name.{nearest(name, job.runs)}")
    missing = [name for name in job.runs if job.weights and name not in job.weights]
    if missing:
        problems.append(f"weights: {', '.join(missing)} has none. Give each run one, or none any.")
    if job.method == "linear" and job.density is not None:
        problems.append("density: linear keeps all changes. Leave it out, or choose another method.")
    elif job.density is not None and not 0 < job.density <= 1:
        problems.append(f"density: must be in (0, 1], is {job.density:g}.")
    specs = [s for name, base in job.runs.items() if (s := attempt(find, f"runs.{name}", name, base, "auto"))]
    for s in specs:
        attempt(quantized_formats.refuse, f"runs.{s.name}", s.base, "merged")
    templates = {s.trained_template: s.name for s in specs if s.trained_template}
    if len(templates) > 1:
        a, b = list(templates.values())[:2]
        problems.append(
            f"runs.{b}: was trained with another chat template than {a}. Train both with one model.chat_template."
        )
    start = attempt(_start, job.model.base, specs) if specs and len(specs) == len(job.runs) else None
    each = 1 / max(1, len(job.runs)) if job.method.endswith("linear") else 1.0
    run = Run(job.run)
    job = replace(
        job, run=run.path, runs={s.name: s.base for s in specs}, weights=job.weights or dict.fromkeys(job.runs, each),
        density=DENSITY.get(job.method) if job.density is None else job.density, model=Start(start.base if start else None),
    )  # fmt: skip
    own = run.is_run() and run.job().get("stage") == "merge"
    finished = own and run.finished()
    if finished and not problems:
        changed = [key for key, value in stored(job).items() if key != "run" and run.job().get(key) != value]
        if not changed and run.provenance().get("merged") != identities(specs):
            changed = ["models that have changed since"]
        if changed:
            problems.append(f"run: {run.path} holds another merge ({', '.join(changed)}). Name another --run.")
    elif not own and run.exists() and run.files():
        problems.append(f"run: {run.path} exists and is no merge. Name another --run.")
    if problems or start is None:
        raise UsageError("\n".join(dict.fromkeys("\n".join(problems).split("\n"))))
    return Plan(job, start, specs, finished)


def stored(job: MergeJob) -> dict:
    """Returns the content of job.yaml."""
    return {**asdict(job), "stage": "merge", "makes": "causal_lm"}


def identities(specs: list[Spec]) -> dict[str, str]:
    return {s.name: s.identity for s in specs}


def evaluation(job: MergeJob) -> str:
    """Returns the command that compares the merged run with what it was made of."""
    runs = {"base": job.model.base} | job.runs | {"merged": job.run}
    return f"python jobs/eval.py {' '.join(f'--runs.{name} {shlex.quote(str(where))}' for name, where in runs.items())} --tasks demo"


def _start(base: str | None, specs: list[Spec]) -> Spec:
    """Returns the model that the runs were trained from. Raises ValueError, naming model.base."""
    if base is not None:
        found = find("model.base", "base", base, "auto")
    else:
        parents = {}
        for s in specs:
            run = Run(s.base) if "/" in s.base else None
            before = run.provenance() if run and run.is_run() else {}
            parents[s.name] = before.get("parent"), before.get("parent_sha256")
        if len(set(parents.values())) > 1 or next(iter(parents.values()))[0] is None:
            of = "; ".join(
                f"{name} was trained from {parent or 'an unknown model'}" for name, (parent, _) in parents.items()
            )
            raise ValueError(f"model.base: {of}. Name the model that what they learnt is counted from.")
        parent, identity = next(iter(parents.values()))
        found = find("model.base", "base", parent, "auto")
        if identity is not None and found.identity != identity:
            raise ValueError(
                f"model.base: {parent} is not as it was when the runs were trained ({identity}, now {found.identity})."
            )
    quantized_formats.refuse("model.base", found.base, "merged into")
    return found
