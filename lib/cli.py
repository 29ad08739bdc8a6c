"""Parses a command line and a YAML file into a Job, without importing torch, TRL or Ray.

Precedence: built-in defaults < --config file < options on the command line.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lib import config_file, fields, termination
from lib.config import Data, Eval, Job, Model, Scale
from lib.config_file import read_yaml
from lib.errors import UsageError, nearest

if TYPE_CHECKING:
    from lib.stage.stage import Stage

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

LORA_OWNED = {
    "peft_type": "model.adapter",
    "task_type": "the stage",
    "base_model_name_or_path": "model.base",
    "revision": "model.revision",
    "auto_mapping": "model.base",
    "peft_version": "the installed peft",
    "inference_mode": "the stage, which trains the adapter",
}
"""The same for the fields of LoraConfig."""

SECTIONS = {"model": Model, "data": Data, "scale": Scale, "eval": Eval}


@dataclass
class Request:
    """A parsed command line: the job, and what to do with it."""

    job: Any
    """A Job, or the dataclass of a work stage."""
    dry_run: bool = False
    resume: bool = False
    config: str | None = None
    """Path of the --config file."""


@contextmanager
def refusing(program: str):
    """Context of the checks before work begins: prints a ValueError, or a known failure such as an unreachable store, and exits with 2."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{termination.word()} before anything was started.", file=sys.stderr)
        sys.exit(termination.code())
    except Exception as e:
        from lib import failure

        if not isinstance(e, ValueError) and not failure.known(e):
            raise
        text = str(e) if isinstance(e, ValueError) else failure.explain(e)
        print(f"{program} can't start:", *text.splitlines(), sep="\n  ", file=sys.stderr)
        sys.exit(2)


def parse(stage: Stage, argv: list[str] | None = None) -> Request:
    """Parses `argv` (None: sys.argv) for a training stage.

    Raises UsageError for an unknown key (naming similar ones), a wrong type or an unreadable file.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser(stage.name, stage.config)
    if "--schema" in argv:
        print(json.dumps(schema(stage.name, stage.config), indent=1))
        raise SystemExit(0)
    known = {a.dest for a in parser._actions}
    kinds = {"run": str}
    for section, cls in SECTIONS.items():
        kinds |= config_file.types_of(cls, f"{section}.")
    del kinds["model.lora"]
    for section, name in (("model.lora", LORA), ("train", stage.config)):
        kinds |= {f"{section}.{key}": f.type for key, f in fields.read(name).items()}
    _check_options(argv, known, kinds)
    given, resumed = option(argv, "--config"), option(argv, "--resume")
    tree = read_yaml(given, kinds) if given else {}
    _check_keys(tree, known, given)
    kept = stored(resumed, stage.name) if resumed else {}
    d = parsed(parser, argv, tree if given else kept)
    resume, dry_run = d.pop("resume"), d.pop("dry_run")
    for key in ("config", "schema"):
        d.pop(key, None)
    d["train"] = d.get("train") or {}
    d["model"]["lora"] = d["model"].get("lora") or {}
    if resume:
        d["run"] = resume
    job = Job.from_dict({**d, "stage": stage.name, "makes": stage.makes})
    return Request(job, dry_run, bool(resume), given)


def parsed(parser, argv: list[str], tree: dict) -> dict:
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


def _parser(stage: str, config_class: str):
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"jobs/{stage}.py",
        usage=f"python jobs/{stage}.py --config configs/{stage}.yaml [--KEY VALUE …] [--dry-run | --resume RUN]",
        exit_on_error=False,
        default_env=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with the keys below")
    parser.add_argument(
        "--dry-run", dest="dry_run", action="store_true", help="check everything, print the plan, start nothing"
    )
    parser.add_argument("--resume", metavar="RUN", help="continue this run from its last complete checkpoint")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of the YAML, for editors")
    parser.add_argument(
        "--run", type=str, default=f"runs/{stage}", help="the run directory to write: a local path or s3://bucket/path"
    )
    for name, cls in SECTIONS.items():
        parser.add_class_arguments(cls, name, skip={"lora"} if name == "model" else set())
    for section, cls, owned in (("model.lora", LORA, LORA_OWNED), ("train", config_class, OWNED)):
        group = parser.add_argument_group(f"{section}: fields of {cls.replace(':', '.')}")
        for key, f in fields.read(cls).items():
            if key not in owned:
                shown = f" (default: {f.default})" if f.default is not None else ""
                group.add_argument(
                    f"--{section}.{key}",
                    type=f.type,
                    default=argparse.SUPPRESS,
                    help=(f.help + shown).replace("%", "%%"),
                )
    return parser


LORA = "peft.tuners.lora.config:LoraConfig"


def option(argv: list[str], name: str) -> str | None:
    """Returns the first value of option `name` in argv, given as "NAME VALUE" or "NAME=VALUE"."""
    for i, a in enumerate(argv):
        if a == name and i + 1 < len(argv):
            return argv[i + 1]
        if a.startswith(f"{name}="):
            return a.split("=", 1)[1]
    return None


def _check_options(argv: list[str], known: set[str], kinds: dict[str, object]) -> None:
    options = {"help", "dry-run", *known}
    for a in argv:
        key = a[2:].split("=")[0]
        if a.startswith("--") and not _is_known(key, options):
            raise UsageError(unknown(key, options, "--"))
    refuse_clocks(argv, kinds)


def refuse_clocks(argv: list[str], kinds: dict[str, object]) -> None:
    """Raises UsageError for a value such as 1:30, which jsonargparse would read as 90."""
    for key in kinds:
        if value := option(argv, f"--{key}"):
            try:
                config_file.refuse(f"--{key}", value, kinds[key])
            except ValueError as e:
                raise UsageError(str(e)) from None


def _check_keys(tree: dict, known: set[str], path: str | None) -> None:
    keys = known - {"help", "config", "dry_run", "resume", "schema"}
    sections = {k.rsplit(".", 1)[0] for k in keys if "." in k} | {"train", "model"}

    def walk(node: dict, prefix: str) -> None:
        for k, v in node.items():
            key = f"{prefix}{k}"
            if key in sections:
                if not isinstance(v, dict):
                    raise UsageError(f"{path}: {key} is a section of keys, but holds {v!r}.")
                walk(v, f"{key}.")
            elif not _is_known(key, keys):
                raise UsageError(f"{path}: {unknown(key, keys | sections)}")

    walk(tree, "")


def _is_known(key: str, known: set[str]) -> bool:
    """Whether the key is known, or is an entry of a key that holds a dict (data.columns.question)."""
    return key in known or any(key.startswith(f"{k}.") for k in known if k.startswith(("data.columns", "train.")))


def unknown(key: str, known: set[str], dashes: str = "") -> str:
    """Returns the message for a key that doesn't exist or must not be set."""
    last = key.rsplit(".", 1)[-1]
    owned = OWNED if key.startswith("train.") else LORA_OWNED if key.startswith("model.lora.") else {}
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
    if not (one or several):
        return re.sub(r"Literal\[(.*?)\]", r"one of \1", text)
    key, kinds, value = (one or several).groups()
    kinds = [kinds] if one else re.split(r", (?![^\[]*\])", kinds)
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


def schema(stage: str, config_class: str) -> dict:
    """Returns the JSON schema of the YAML of jobs/<stage>.py, for completion and validation in editors."""
    from pydantic import ConfigDict, Field, TypeAdapter, create_model

    strict = ConfigDict(extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True)

    def borrowed(title: str, cls: str, owned=()) -> dict:
        rows = {
            k: (f.type, Field(f.default, description=f.help)) for k, f in fields.read(cls).items() if k not in owned
        }
        return create_model(title, __config__=strict, **rows).model_json_schema()

    sections = {}
    for name, cls in SECTIONS.items():
        cls.__pydantic_config__ = strict
        sections[name] = TypeAdapter(cls).json_schema()
    sections["model"]["properties"]["lora"] = borrowed("Lora", LORA, LORA_OWNED)
    sections["train"] = borrowed("Train", config_class, OWNED)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"configs/{stage}.yaml",
        "type": "object",
        "additionalProperties": False,
        "properties": {"run": {"type": "string", "default": f"runs/{stage}"}, **sections},
    }
