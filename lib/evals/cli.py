"""Command line and YAML of jobs/eval.py → an EvalJob. Imports nothing heavy: a mistake is refused in a second."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from typing import Any

from lib import cli
from lib.cli import UsageError
from lib.config import Data
from lib.evals.job import EvalJob

USAGE = "python jobs/eval.py --config configs/eval.yaml [--runs.NAME RUN] [--KEY VALUE …] [--dry-run]"
OPEN = ("runs", "data.columns")
"""Keys whose entries the user names."""


def parse(argv: list[str] | None = None) -> tuple[EvalJob, bool]:
    """(job, dry run). Raises UsageError for an unknown key (with the nearest), a wrong type or an unreadable file."""
    argv = sys.argv[1:] if argv is None else argv
    if "--schema" in argv:
        print(json.dumps(schema(), indent=1))
        raise SystemExit(0)
    known = {f.name for f in fields(EvalJob)} | {f"data.{f.name}" for f in fields(Data)}
    argv = _split(argv, known | {"config", "dry-run", "help"})
    tree = cli.read_yaml(path) if (path := cli.option(argv, "--config")) else {}
    _check_keys(tree, known, path)
    try:
        ns = _parser().parse_args(argv)
    except argparse.ArgumentError as e:
        raise UsageError(cli.tidy(str(e))) from None
    d = ns.as_dict()
    dry_run = d.pop("dry_run")
    for option in ("config", "schema"):
        d.pop(option, None)
    return EvalJob(**{**d, "data": Data(**d["data"])}), dry_run


def _parser():
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="jobs/eval.py", usage=USAGE, exit_on_error=False, default_env=False)
    parser.add_argument("--config", action="config", help="YAML file with the keys below")
    parser.add_argument(
        "--dry-run", dest="dry_run", action="store_true", help="check everything, print the plan, start nothing"
    )
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of the YAML, for editors")
    parser.add_class_arguments(EvalJob)
    return parser


def _split(argv: list[str], known: set[str]) -> list[str]:
    """Refuses options that don't exist; turns `--tasks demo kl` and `--tasks demo,kl` into what jsonargparse reads."""
    out, i = [], 0
    while i < len(argv):
        option = argv[i]
        i += 1
        out.append(option)
        if not option.startswith("--"):
            continue
        key = option[2:].split("=")[0]
        if key not in known and not any(key.startswith(f"{k}.") for k in OPEN):
            raise UsageError(cli.unknown(key if key.startswith("data.") else key.split(".")[0], known, "--"))
        if key == "tasks":
            values = option.split("=", 1)[1:]
            while i < len(argv) and not argv[i].startswith("--"):
                values.append(argv[i])
                i += 1
            if len(values) != 1 or not values[0].startswith("["):
                values = [json.dumps([v for value in values for v in value.split(",") if v])]
            out[-1] = f"--tasks={values[0]}"
    return out


def _check_keys(tree: dict[str, Any], known: set[str], path: str | None) -> None:
    for key, value in tree.items():
        if key not in known:
            raise UsageError(f"{path}: {cli.unknown(key, known)}")
        if key == "data":
            if not isinstance(value, dict):
                raise UsageError(f"{path}: data is a section of keys, but holds {value!r}.")
            for inner in value:
                if f"data.{inner}" not in known:
                    raise UsageError(f"{path}: {cli.unknown(f'data.{inner}', known)}")


def schema() -> dict:
    """JSON schema of the YAML, for completion and checks in editors."""
    from pydantic import ConfigDict, TypeAdapter

    for cls in (EvalJob, Data):
        cls.__pydantic_config__ = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **TypeAdapter(EvalJob).json_schema(),
        "title": "configs/eval.yaml",
    }
