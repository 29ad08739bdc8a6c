"""Finds on the driver what TRL, transformers and PEFT would refuse on a worker: a subprocess builds the objects a worker will build.

    python -m lib.stage.preflight sft <<< '{"jobs": [{…}]}'       prints {"problems": […], "whole": true}

On a CPU it builds the config class, the scheduler and optimizer with their arguments, LoraConfig, and the base without its weights
(on torch's meta device). It starts once the keys are read, imports libraries while the plan is made, and gets the job last; a job
that is refused earlier doesn't wait for it. No weights are loaded, and nothing from a hub. Settings that passed once are not
checked again with the same package versions.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import importlib
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.config.job import Job
from lib.errors import UsageError, nearest
from lib.models import structure
from lib.models.structure import attempt
from lib.run import cache

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from lib.stage.plan import Plan

LIMIT_S = 5.0
"""Seconds that the driver waits for the result once the plan is made."""
EACH_S = 2.0
"""The same for each further job."""

ON_GPU = ("tf32", "bf16_full_eval", "fp16_full_eval", "torch_compile", "torch_compile_backend", "torch_compile_mode")
"""Fields of TrainingArguments that are refused on a CPU."""

UNUSED = ("bitsandbytes", "sklearn", "scipy", "pandas", "tensorflow", "torchao", "datasets")
"""Packages that transformers and PEFT import if installed. Nothing built here needs them, and importing takes two seconds."""


class Preflight:
    """The subprocess, as a context manager that kills it on exit. config: "module:Class" of the stage's TRL config; job: as the user
    requested it; also: other jobs of that stage, which are checked as well."""

    def __init__(self, config: str, job: Job, also: Sequence[Job] = ()):
        self.config, self.also = config, also
        self.process: subprocess.Popen[str] | None = None
        package = Path(__file__).parents[1]
        parts = {
            "job": [job.stage, job.makes, asdict(job.model), job.train, config],
            "packages": [sys.version, *(version(p) for p in ("torch", "transformers", "trl", "peft", "accelerate"))],
            "code": [
                (package / name).read_text()
                for name in (
                    "stage/preflight.py",
                    "stage/training_arguments.py",
                    "models/structure.py",
                    "models/load.py",
                    "models/added.py",
                    "models/parallel.py",
                    "models/bottleneck.py",
                    "models/prefix_tuning.py",
                    "models/soft_prompt.py",
                )
            ],
        }
        if also:
            parts["also"] = [[asdict(j.model), j.train] for j in also]
        self.known = cache("preflight", hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest())
        """A file that exists if these settings passed before; it holds the base's identity and whether the job trains on GPUs."""

    def __enter__(self) -> Preflight:
        if not self.known.exists():
            self._start()
        return self

    def _start(self) -> subprocess.Popen[str]:
        root = str(Path(__file__).parents[2])
        env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")}
        env |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        env["PYTHONPATH"] = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lib.stage.preflight", self.config],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self.process

    def __exit__(self, *exc: object) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()

    def ask(self, planned: Plan) -> None:
        """Checks a job that is about to start. Raises UsageError with the problems found. If the
        subprocess is too slow or fails, a note in the plan says that these checks are left to the workers."""
        if planned.finished:
            return
        job, left = planned.job, "what TRL, transformers and PEFT check is left to the workers: "
        gpu = planned.device.gpu if planned.device else job.scale.device != "cpu"
        began, of = time.time(), f"{planned.identities['model.base']} {gpu}"
        if not self.process and self.known.read_text() == of:
            return
        process = self.process or self._start()
        try:
            asked = json.dumps({"jobs": [j.to_dict() for j in (job, *self.also)], "gpu": gpu})
            out, err = process.communicate(asked, timeout=LIMIT_S + EACH_S * len(self.also))
        except subprocess.TimeoutExpired:
            planned.notes.append(f"{left}it took more than {time.time() - began:.0f} s here")
            return
        if process.returncode:
            planned.notes.append(left + (err.strip().splitlines() or ["nothing was printed"])[-1])
            return
        found = json.loads(out.splitlines()[-1])
        if found["problems"]:
            raise UsageError("\n".join(found["problems"]))
        if found["whole"]:
            with suppress(OSError):  # without a writable cache, the next job is checked again
                self.known.parent.mkdir(parents=True, exist_ok=True)
                self.known.write_text(of)


def check(job: Job, config: str, gpu: bool) -> list[str]:
    """Builds everything and returns the problems, each beginning with its key. For a GPU job, fields that a CPU refuses are skipped."""
    out: list[str] = []
    args = attempt(out, "train", job.train, lambda train: _arguments(replace(job, train=train), config, gpu))
    if args:
        attempt(out, "train", job.train, lambda train: _schedule(args, train))
        if {"optim", "optim_args", "optim_target_modules"} & job.train.keys():
            attempt(out, "train", job.train, lambda train: _optimizer(args, train))
        out += _checkpointing(job.train.get("gradient_checkpointing_kwargs"))
        out += _backend(job.train.get("torch_compile_backend"))
    return out or structure.problems(job, gpu)


def _arguments(job: Job, config: str, gpu: bool) -> Any:
    from lib.config import trl_fields
    from lib.stage.training_arguments import arguments

    train = {k: v for k, v in job.train.items() if not (gpu and k in ON_GPU)}
    if config.startswith(
        "lib."
    ):  # only TRL's fields are built; ours are checked elsewhere, and their import takes seconds
        config = "trl.trainer.sft_config:SFTConfig"
        train = {k: v for k, v in train.items() if k in trl_fields.read(config)}
    one = replace(job.scale, workers=1, min_workers=None, strategy="ddp", offload=False, device="cpu", precision="fp32")
    return arguments(replace(job, scale=one, train=train), config, 1, os.devnull)[0]


def _schedule(args: TrainingArguments, train: dict) -> None:
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    kwargs: Any
    kind, kwargs = train.get("lr_scheduler_type", "linear"), train.get("lr_scheduler_kwargs")
    kwargs = args.lr_scheduler_kwargs if kwargs else kwargs  # read from JSON, where it was text
    get_scheduler(kind, optimizer, args.get_warmup_steps(100), 100, scheduler_specific_kwargs=kwargs)


def _optimizer(args: Any, train: dict) -> None:
    for name in [n for n in UNUSED if sys.modules.get(n, n) is None]:  # some optimizers need these packages
        del sys.modules[name]
    import torch
    from transformers import Trainer
    from transformers.training_args import OptimizerNames

    args = copy.copy(args)
    for key in ("optim_args", "optim_target_modules"):
        setattr(args, key, train.get(key))
    args.optim = OptimizerNames(train.get("optim", "adamw_torch"))
    model: Any = torch.nn.Linear(2, 2)  # the Trainer asks for a transformers model and uses its parameters
    made, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
    if given := args.optim_args:
        args.optim_args = None
        if Trainer.get_optimizer_cls_and_kwargs(args, model)[1] == kwargs:
            raise ValueError(f"{args.optim.value} takes nothing of {given!r}.")
    made(model.parameters(), **{k: v for k, v in kwargs.items() if k not in ("params", "model", "optimizer_dict")})


def _checkpointing(given: object) -> list[str]:
    from torch.utils.checkpoint import checkpoint

    if not isinstance(given, dict):
        return []
    known = [*inspect.signature(checkpoint).parameters, "every_n_layers", "selective", "offload"]
    known = [k for k in known if k not in ("function", "args", "kwargs")]
    key = "train.gradient_checkpointing_kwargs"
    return [f"{key}: there is no {k}.{nearest(k, known)} Known: {', '.join(known)}." for k in given if k not in known]


def _backend(name: str | None) -> list[str]:
    if name is None:
        return []
    import torch

    known = torch.compiler.list_backends(exclude_tags=())
    return [] if name in known else [f"train.torch_compile_backend: there is no {name}. Known: {', '.join(known)}."]


if __name__ == "__main__":
    gc.disable()  # garbage collection takes a fifth of the import time
    unused: Any = dict.fromkeys(UNUSED)  # with None, a package counts as not installed
    sys.modules |= unused
    for module in ("lib.stage.training_arguments", "trl.trainer.sft_config", "peft"):  # while the plan is made
        importlib.import_module(module)
    asked = json.loads(sys.stdin.read())
    jobs = [Job.from_dict(job) for job in asked["jobs"]]
    # False: the base isn't on this machine and was not checked
    whole = all(structure.folder(job.model.base) is not None for job in jobs)
    found = dict.fromkeys(line for job in jobs for line in check(job, sys.argv[1], asked["gpu"]))
    print(json.dumps({"problems": list(found), "whole": whole}))
