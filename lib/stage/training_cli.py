"""Parses a command line and a YAML file into a Job, without importing torch, TRL or Ray.

Precedence: built-in defaults < --config file < options on the command line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from lib.config import config_file, rewards, trl_fields
from lib.config.adapters import ADAPTERS, LORA, configs
from lib.config.command_line import OWNED, PEFT_OWNED, Request, option, parsed, refuse_clocks, stored, unknown
from lib.config.config_file import read_yaml
from lib.config.job import REWARDED, SECTIONS, Job
from lib.errors import UsageError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from lib.stage.stage import Stage


def parse(stage: Stage, argv: list[str] | None = None) -> Request:
    """Parses `argv` (None: sys.argv) for a training stage.

    Raises UsageError for an unknown key (naming similar ones), a wrong type or an unreadable file.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "--schema" in argv:
        print(json.dumps(schema(stage), indent=1))
        raise SystemExit(0)
    given, resumed = option(argv, "--config"), option(argv, "--resume")
    kept = stored(resumed, stage.name) if resumed else {}
    weights = None
    if stage.rewarded:
        argv, options = rewards.options(argv)
        weights = rewards.section(read_yaml(given) if given else kept, options)
    peft, notes = _adapter(argv, read_yaml(given) if given else kept)
    known, kinds = _keys(stage, peft)
    _check_options(argv, known, kinds)
    tree = read_yaml(given, kinds) if given else kept
    if stage.rewarded:
        tree.pop("rewards", None)
    if notes:
        del tree["model"]["peft"]
    if given:
        _check_keys(tree, known, given)
    d = parsed(_parser(stage, peft), argv, tree)
    resume, dry_run = d.pop("resume"), d.pop("dry_run")
    for key in ("config", "schema"):
        d.pop(key, None)
    d["train"] = d.get("train") or {}
    d["model"]["peft"] = d["model"].get("peft") or {}
    if resume:
        d["run"] = resume
    d["rewards"] = weights
    job = Job.from_dict({**d, "stage": stage.name, "makes": stage.kind(d["train"], d["model"]["adapter"])})
    return Request(job, dry_run, bool(resume), given, notes)


def _adapter(argv: list[str], tree: dict) -> tuple[str, list[str]]:
    """Returns (PEFT's config class, whose fields model.peft takes; a note if those in `tree` are those of an adapter that an option
    has replaced by another one or by none)."""
    found = tree.get("model")
    model: dict = found if isinstance(found, dict) else {}
    names = model.get("adapter"), option(argv, "--model.adapter") or model.get("adapter")
    there, chosen = (ADAPTERS[n].config if isinstance(n, str) and n in ADAPTERS else LORA for n in names)
    if not model.get("peft"):
        return chosen, []
    if names[1] == "none" != names[0]:
        return chosen, ["model.peft: its keys are left out, since --model.adapter is none"]
    if there == chosen:
        return chosen, []
    return chosen, [
        f"model.peft: its keys are those of model.adapter: {names[0]}; {names[1]} starts from its own defaults"
    ]


OPTIONS = {"help", "config", "print_config", "dry_run", "resume", "schema"}
"""Options that are no keys of the YAML."""


def sections(stage: Stage) -> dict[str, Any]:
    """Returns {section: its class}, without `train`."""
    return SECTIONS | (REWARDED if stage.rewarded else {})


def _keys(stage: Stage, peft: str) -> tuple[set[str], dict[str, object]]:
    """Returns (the names that may be given, {key: type} of all keys, also of those that follow from others)."""
    kinds: dict[str, object] = {"run": str}
    for section, cls in sections(stage).items():
        kinds |= config_file.types_of(cls, f"{section}.")
    del kinds["model.peft"]
    known = {*kinds, *sections(stage), *OPTIONS}
    for section, name, owned in (("model.peft", peft, PEFT_OWNED), ("train", stage.config, OWNED)):
        fields = {f"{section}.{key}": f.type for key, f in trl_fields.read(name).items()}
        kinds |= fields
        known |= fields.keys() - {f"{section}.{key}" for key in owned}
    return known, kinds


def _parser(stage: Stage, peft: str) -> ArgumentParser:
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"jobs/{stage.name}.py",
        usage=f"python jobs/{stage.name}.py --config {stage.example} [--KEY VALUE …] [--dry-run | --resume RUN]",
        exit_on_error=False,
        default_env=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with the keys below")
    if stage.rewarded:
        parser.epilog = "--rewards.NAME WEIGHT: what answers are rewarded for; names are in lib/methods/rl/rewards.py."
    parser.add_argument(
        "--dry-run", dest="dry_run", action="store_true", help="check everything, print the plan, start nothing"
    )
    parser.add_argument("--resume", metavar="RUN", help="continue this run from its last complete checkpoint")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of the YAML, for editors")
    parser.add_argument(
        "--run",
        type=str,
        default=f"runs/{stage.name}",
        help="the run directory to write: a local path or s3://bucket/path",
    )
    for name, cls in sections(stage).items():
        parser.add_class_arguments(cls, name, skip={"peft"} if name == "model" else set())
    for section, borrowed, owned in (("model.peft", peft, PEFT_OWNED), ("train", stage.config, OWNED)):
        group = parser.add_argument_group(f"{section}: fields of {borrowed.replace(':', '.')}")
        for key, f in trl_fields.read(borrowed).items():
            if key not in owned:
                shown = f" (default: {f.default})" if f.default is not None else ""
                group.add_argument(
                    f"--{section}.{key}",
                    type=f.type,
                    default=argparse.SUPPRESS,
                    help=(f.help + shown).replace("%", "%%"),
                )
    return parser


def _check_options(argv: list[str], known: set[str], kinds: dict[str, object]) -> None:
    options = {"dry-run", *known}
    for a in argv:
        key = a[2:].split("=")[0]
        if a.startswith("--") and not _is_known(key, options):
            raise UsageError(unknown(key, options, "--"))
    refuse_clocks(argv, kinds)


def _check_keys(tree: dict, known: set[str], path: str | None) -> None:
    keys = known - OPTIONS
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
    return key in known or any(
        key.startswith(f"{k}.") for k in known if k.startswith(("data.columns", "train.", "schedule."))
    )


def schema(stage: Stage) -> dict:
    """Returns the JSON schema of the stage's YAML, for completion and validation in editors."""
    from pydantic import ConfigDict, Field, TypeAdapter, create_model, with_config

    strict = ConfigDict(extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True)

    def borrowed(title: str, cls: str, owned: Collection[str]) -> dict:
        rows: dict[str, Any] = {
            k: (f.type, Field(f.default, description=f.help)) for k, f in trl_fields.read(cls).items() if k not in owned
        }
        return create_model(title, __config__=strict, **rows).model_json_schema()

    schemas = {}
    for name, cls in sections(stage).items():
        schemas[name] = TypeAdapter(with_config(strict)(cls)).json_schema()
    kinds = [borrowed(name, cls, PEFT_OWNED) for cls, name in configs().items()]
    schemas["model"]["properties"]["peft"] = {"anyOf": kinds}
    schemas["train"] = borrowed("Train", stage.config, OWNED)
    if stage.rewarded:
        schemas["rewards"] = {"type": "object", "additionalProperties": {"type": "number"}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": stage.example,
        "type": "object",
        "additionalProperties": False,
        "properties": {"run": {"type": "string", "default": f"runs/{stage.name}"}, **schemas},
    }
