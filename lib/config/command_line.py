"""A command line beside a YAML file: what the command lines of training stages and of other jobs share.

Imports neither torch, TRL nor Ray.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lib.config import config_file
from lib.errors import UsageError, nearest

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

OWNED = {
    "output_dir": "run",
    "per_device_train_batch_size": "scale.global_batch and scale.micro_batch",
    "per_device_eval_batch_size": "scale.micro_batch",
    "gradient_accumulation_steps": "scale.global_batch and scale.micro_batch",
    "auto_find_batch_size": "scale.micro_batch",
    "bf16": "scale.precision",
    "fp16": "scale.precision",
    "use_cpu": "scale.device",
    "deepspeed": "scale.strategy",
    "fsdp": "scale.strategy",
    "fsdp_config": "scale.strategy",
    "resume_from_checkpoint": "--resume",
    "chat_template_path": "model.chat_template",
    "remove_unused_columns": "data.columns",
    "ddp_backend": "scale.device",
    "parallelism_config": "scale.strategy",
}
"""{field of TrainingArguments that can't be set: the key of the job that it follows from}."""


PEFT_OWNED = {
    "peft_type": "model.adapter",
    "task_type": "the stage",
    "base_model_name_or_path": "model.base",
    "revision": "model.revision",
    "auto_mapping": "model.base",
    "peft_version": "the installed peft",
    "inference_mode": "the stage, which trains the adapter",
}
"""The same for the fields of PEFT's config classes."""


@dataclass
class Request:
    """A parsed command line: the job, and what to do with it."""

    job: Any
    """A Job, or the dataclass of a work stage."""
    dry_run: bool = False
    resume: bool = False
    config: str | None = None
    """Path of the --config file."""
    notes: list[str] = field(default_factory=list)
    """Remarks for the plan."""


def parsed(parser: ArgumentParser, argv: list[str], tree: dict) -> dict:
    """Parses `argv` with a jsonargparse parser. Returns {key: value}; options override `tree`, the content of argv's --config file."""
    rest, at = [*argv], [i for i, a in enumerate(argv) if a == "--config" or a.startswith("--config=")]
    if len(at) > 1:
        raise UsageError("--config: give one file; other keys can follow as --KEY VALUE.")
    if at:
        del rest[at[0] : at[0] + (1 if "=" in argv[at[0]] else 2)]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as f:
        f.write(config_file.dump(tree))
        f.flush()
        try:
            return parser.parse_args(["--config", f.name, *rest]).as_dict()
        except argparse.ArgumentError as e:
            raise UsageError(tidy(str(e))) from None


def option(argv: list[str], name: str) -> str | None:
    """Returns the first value of option `name` in argv, given as "NAME VALUE" or "NAME=VALUE"."""
    for i, a in enumerate(argv):
        if a == name and i + 1 < len(argv):
            return argv[i + 1]
        if a.startswith(f"{name}="):
            return a.split("=", 1)[1]
    return None


def refuse_clocks(argv: list[str], kinds: dict[str, object]) -> None:
    """Raises UsageError for a value such as 1:30, which jsonargparse would read as 90."""
    for key in kinds:
        if value := option(argv, f"--{key}"):
            try:
                config_file.refuse(f"--{key}", value, kinds[key])
            except ValueError as e:
                raise UsageError(str(e)) from None


def unknown(key: str, known: set[str], dashes: str = "") -> str:
    """Returns the message for a key that doesn't exist or must not be set."""
    last = key.rsplit(".", 1)[-1]
    owned = OWNED if key.startswith("train.") else PEFT_OWNED if key.startswith("model.peft.") else {}
    if last in owned:
        return f"{dashes}{key} can't be set: it follows from {owned[last]}."
    return f"{dashes}{key} is not a key of this job.{nearest(key, known, dashes)}"


KINDS = {
    "int": "a whole number",
    "float": "a number (float)",
    "str": "text",
    "bool": "true or false",
    "list": "a list: [a, b]",
}


def tidy(message: str) -> str:
    """Shortens a jsonargparse message to one line: the key, the values it takes, and the value given."""
    text = " ".join(message.split()).replace("Parser key ", "").replace("typing.", "").replace("NoneType", "null")
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text)
    one = re.fullmatch(r'"([\w.]+)": Expected an? (.*?)\. Got value: (.*)', text)
    several = re.fullmatch(r'"([\w.]+)": Does not validate .*? Subtypes: \[(.*)\] Errors: .* Given value: (.*)', text)
    found = one or several
    if not found:
        return re.sub(r"Literal\[(.*?)\]", r"one of \1", text)
    key, expected, value = found.groups()
    kinds = [expected] if one else re.split(r", (?![^\[]*\])", expected)
    names = [n for kind in kinds if kind.startswith("Literal[") for n in re.findall(r"'(.*?)'", kind)]
    accepted = [re.sub(r"Literal\[(.*)\]", r"one of \1", KINDS.get(kind, kind)) for kind in kinds]
    return f"{key}: must be {' or '.join(accepted)}, is {value}.{nearest(value, names)}"


def stored(path: str, stage: str) -> dict:
    """Returns the configuration of the run to resume. Raises UsageError if it isn't a run of this stage."""
    from lib.run import Run

    run = Run(path)
    if not run.is_run():
        raise UsageError(f"--resume: {run.path} is not a run: it has no job.yaml. Start it without --resume.")
    kept = run.job()
    if kept["stage"] != stage:
        raise UsageError(f"--resume: {run.path} was made by jobs/{kept['stage']}.py, not by jobs/{stage}.py.")
    return {k: v for k, v in kept.items() if k not in ("stage", "makes")}
