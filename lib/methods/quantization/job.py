"""The configuration of jobs/quantize.py, and every check that needs no model in memory."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from lib import data
from lib.config import command_line, config_file, ranges
from lib.config.command_line import Request
from lib.config.dataclass_cli import Typed
from lib.config.job import Data
from lib.errors import UsageError
from lib.evals.job import EvalJob
from lib.evals.plan import unfiled
from lib.generation import vllm_generator
from lib.generation.model_spec import Spec, find
from lib.models import quantized_formats
from lib.models.quantization.schemes import METHODS
from lib.run import Run
from lib.runtime import hardware, integrity, logs


@dataclass
class Source:
    base: str = "runs/quickstart/sft"
    """The model to quantise: a run directory (local or s3://), a folder that from_pretrained loads, or a hub name."""


@dataclass
class QuantizeJob:
    """One quantisation: the model, the method, and the tasks measured before and after."""

    run: str = "runs/quantize"
    """The run directory to write: a local path or s3://bucket/path."""
    model: Source = field(default_factory=Source)
    method: Literal["int8", "int8_dynamic", "w8a8", "w4a16", "bnb_int8", "nf4", "gptq_w4a16"] = "w8a8"
    """int8, int8_dynamic: torchao; w8a8, w4a16: compressed-tensors, the fastest in vLLM; bnb_int8, nf4: bitsandbytes; gptq_w4a16:
    llm-compressor, calibrated on training rows of `data`, in an environment that pip creates for it (lib/models/quantization/schemes.py)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the unquantised parts: embeddings, norms and output layer. auto: the base's own."""
    data: Data = field(default_factory=Data)
    """Data for perplexity (held-out rows) and for GPTQ's calibration (training rows). If nothing here is set: the data of the run that
    is quantised."""
    tasks: list[str] = field(default_factory=lambda: ["perplexity"])
    """Tasks to measure before and after, by their names in lib/evals/registry.py. Empty: only sizes, memory and speed."""
    task_data: dict[str, str] = field(default_factory=dict)
    """{task: address of its examples}, as in jobs/eval.py."""
    limit: int | None = 200
    """Maximum number of held-out examples per task. None: all."""
    max_new_tokens: int = 64
    """Maximum length of a generated answer, in tokens."""
    seed: int = 0
    """Seed of the bootstrap, and of the choice of rows if there are more than `limit`."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """Engine that runs the models before and after. auto: vLLM if it is installed and loads the format, else transformers."""
    workers: int | None = None
    """Number of processes that work on the tasks at the same time. None: one per GPU, or one per CPU core if there is no GPU."""

    def evaluation(self) -> EvalJob:
        """Returns the evaluation of the tasks on the model before and after. Its report goes into the run."""
        same = ("run", "data", "tasks", "task_data", "limit", "max_new_tokens", "seed", "workers", "dtype")
        runs = {"before": self.model.base, self.method: self.run}
        return EvalJob(**{k: getattr(self, k) for k in same}, runs=runs, engine=self.chosen())

    def chosen(self) -> str:
        """Returns the engine that `engine` resolves to. Raises ValueError, naming `engine`, if it can't be used."""
        loads = quantized_formats.FORMATS[METHODS[self.method].format].vllm
        if self.engine == "vllm" and not loads:
            raise ValueError(f"engine: vllm doesn't load {self.method}. Say engine: transformers, or method: w8a8.")
        if self.engine == "vllm" and not vllm_generator.installed():
            raise ValueError("engine: vllm is not installed here: make vllm, or with a GPU pip install -e '.[gpu]'.")
        use = self.engine == "vllm" or (self.engine == "auto" and loads and vllm_generator.installed())
        return "vllm" if use else "transformers"


USAGE = "python jobs/quantize.py --config configs/quantize.yaml [--KEY VALUE …] [--dry-run | --resume RUN]"
KEYS = Typed("quantize", QuantizeJob, USAGE, ("task_data", "data.columns"), ("tasks",), True)


def parse(argv: list[str] | None = None) -> Request:
    """Parses `argv` (None: sys.argv). Raises UsageError for an unknown key, a wrong type or an unreadable file."""
    argv = sys.argv[1:] if argv is None else argv
    d, dry_run, resume = KEYS.read(argv)
    job = QuantizeJob(**d | ({"run": resume} if resume else {}))
    path = command_line.option(argv, "--config")
    named = (
        any(a.startswith("--data.") for a in argv)
        or bool(path and "data" in config_file.read_yaml(path))
        or bool(resume)
    )
    base = Run(job.model.base)
    if not named and (base.remote or Path(base.path).is_dir()) and base.is_run() and "data" in base.job():
        job = replace(job, data=Data(**base.job()["data"]))
    return Request(job, dry_run, bool(resume), path)


@dataclass
class Plan:
    job: QuantizeJob
    """With absolute paths and the base located."""
    spec: Spec
    """The model to quantise."""
    check: object | None
    """lib.data's Check of the rows."""
    done: bool
    """Whether the run's model exists already, so that only its report may be missing."""
    notes: list[str]

    @property
    def finished(self) -> bool:
        run = Run(self.job.run)
        return self.done and run.fs.exists(run.at("reports/quantize.json"))

    def lines(self) -> list[tuple[str, str]]:
        """Returns rows (label, text) for a table."""
        j, method = self.job, METHODS[self.job.method]
        kept = "as the base has it" if j.dtype == "auto" else j.dtype
        return [
            ("stage", f"jobs/quantize.py → {j.run}"),
            ("base", f"{j.model.base}  ({self.spec.identity})"),
            ("method", f"{j.method}: {method.about} ({method.format}); what isn't quantised stays {kept}"),
            ("engine", f"{'vLLM' if j.chosen() == 'vllm' else 'transformers'}, before and after"),
            ("tasks", ", ".join(j.tasks) or "none: sizes, memory and speed only"),
            *[("data", line.removeprefix("data: ")) for line in (self.check.lines() if self.check else [])],
            logs.line(Run(j.run)),
            *[("note", note) for note in self.notes],
        ]


def plan(request: Request) -> Plan:
    """Checks a QuantizeJob. Raises UsageError listing every problem found, one a line, each naming its key."""
    job, resume = request.job, request.resume
    problems = ranges.values(asdict(job)) + hardware.room("workers", job.workers)
    notes: list[str] = []

    def attempt(f, *args):
        try:
            return f(*args)
        except ValueError as e:
            problems.append(str(e))

    run, spec = Run(job.run), attempt(find, "model.base", "before", job.model.base, job.dtype)
    if spec:
        attempt(quantized_formats.refuse, "model.base", spec.base, "quantised again")
        job = replace(job, model=replace(job.model, base=spec.base))
    kind = quantized_formats.FORMATS[METHODS[job.method].format]
    if not importlib.util.find_spec(kind.package) and kind.package != "compressed_tensors":
        problems.append(f"method: {job.method} needs {kind.name}: pip install {kind.install}")
    engine = attempt(job.chosen)
    if engine == "transformers" and not importlib.util.find_spec(kind.package):
        problems.append(f"engine: transformers needs {kind.name} to load {job.method}: pip install {kind.install}")
    job = replace(job, run=run.path, data=data.absolute(job.data))
    checked = attempt(data.check, job.data, ("chat", "text"), METHODS[job.method].calibrated)
    if checked:
        attempt(checked.need_heldout)  # memory and speed are measured on them
    problems += unfiled(job.task_data)
    if spec and engine and job.tasks:  # checks the tasks on the base, since the quantised model may not exist yet
        from lib.evals import plan as evals

        before = replace(job.evaluation(), runs={"before": spec.base})
        problems += [p for p in [_problem(evals.plan, before)] if p]
    done = run.is_run() and run.finished()
    if resume and done and (why := integrity.damage(run)):
        done = False
        notes.append(f"{why}; it is made again")
    if run.is_run() and not resume:
        state = "is finished" if done else f"stopped ({run.provenance().get('status', 'before it began')})"
        there = f"{run.path} already holds a run, which {state}. Continue with --resume {shlex.quote(job.run)}, or name another --run."
        notes.append(there) if request.dry_run else problems.append(f"run: {there}")
    elif run.is_run() and (
        changed := [k for k, v in stored(job).items() if k not in ("run", "makes") and run.job().get(k) != v]
    ):
        problems.append(
            f"--resume: {run.path} was started with another configuration ({', '.join(changed)}). Resume without --config, "
            "or name another --run."
        )
    elif run.is_run() and spec and (was := run.provenance().get("parent_sha256", spec.identity)) != spec.identity:
        problems.append(
            f"model.base: its weights are not those that the run was started with ({was}, now {spec.identity})."
        )
    elif not run.is_run() and run.exists() and run.files():
        problems.append(f"run: {run.path} exists and is not a run. Name another --run.")
    if problems:
        raise UsageError("\n".join(dict.fromkeys("\n".join(problems).split("\n"))))
    if done and resume:
        notes.append("the model exists already: only the report is missing")
    return Plan(job, spec, checked, done, notes)


def stored(job: QuantizeJob) -> dict:
    """Returns the content of job.yaml."""
    return {**asdict(job), "stage": "quantize", "makes": "causal_lm"}


def _problem(f, *args) -> str | None:
    try:
        f(*args)
    except ValueError as e:
        return str(e)
