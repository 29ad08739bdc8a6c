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
from lib.evals.endpoint import Judge
from lib.evals.gate import Rule
from lib.evals.job import EvalJob
from lib.run import Run

USAGE = "python jobs/eval.py --config configs/eval.yaml [--runs NAME … | --runs.NAME RUN] [--KEY VALUE …] [--dry-run]"
OPEN = ("runs", "task_data", "data.columns")
"""Keys whose entries the user names."""
SECTIONS = {"data": Data, "judge": Judge}
"""Keys that are sections of keys."""


def parse(argv: list[str] | None = None) -> tuple[EvalJob, bool]:
    """(job, dry run). Raises UsageError for an unknown key (with the nearest), a wrong type or an unreadable file."""
    argv = sys.argv[1:] if argv is None else argv
    if "--schema" in argv:
        print(json.dumps(schema(), indent=1))
        raise SystemExit(0)
    known = {f.name for f in fields(EvalJob)} | {f"{s}.{f.name}" for s, kind in SECTIONS.items() for f in fields(kind)}
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
    sections = {name: kind(**d[name]) for name, kind in SECTIONS.items()}
    return EvalJob(**{**d, **sections, "gate": [Rule(**r) for r in d["gate"]]}), dry_run


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
    """Refuses options that don't exist; turns `--tasks demo kl`, `--tasks demo,kl` and
    `--decoding greedy t=0.7,top_p=0.9` into what jsonargparse reads."""
    out, i = [], 0
    while i < len(argv):
        option = argv[i]
        i += 1
        out.append(option)
        if not option.startswith("--"):
            continue
        key = option[2:].split("=")[0]
        if key not in known and not any(key.startswith(f"{k}.") for k in OPEN):
            raise UsageError(cli.unknown(key if key.split(".")[0] in SECTIONS else key.split(".")[0], known, "--"))
        if key == "runs" and "=" not in option:
            words = []
            while i < len(argv) and not argv[i].startswith("--"):
                words.append(argv[i])
                i += 1
            out[-1:] = [f"--runs.{name}={base}" for name, base in named(words).items()]
        if key in ("tasks", "decoding"):
            values = option.split("=", 1)[1:]
            while i < len(argv) and not argv[i].startswith("--"):
                values.append(argv[i])
                i += 1
            if len(values) != 1 or not values[0].startswith("["):
                split = [value.split(",") if key == "tasks" else [value] for value in values]
                values = [json.dumps([v for several in split for v in several if v])]
            out[-1] = f"--{key}={values[0]}"
    return out


def named(words: list[str]) -> dict[str, str]:
    """{name: run} of `--runs base sft my=elsewhere/x`: a bare word is runs/<word> where that is a run, and base is what
    the others were first trained from."""
    found: dict[str, str] = {}
    for word in words:
        name, given, address = word.partition("=")
        if not given:
            name, address = word.rstrip("/").rsplit("/", 1)[-1], word
            if "/" not in word and Run(f"runs/{word}").is_run():
                address = f"runs/{word}"
        found[name] = address
    if found.get("base") == "base":
        trained = next((Run(a) for a in found.values() if a != "base" and Run(a).is_run()), None)
        if not trained:
            raise UsageError(
                "--runs: base is what another of the runs was trained from, and there is none. Say base=MODEL."
            )
        while trained.is_run():
            found["base"] = trained.job()["model"]["base"]
            trained = Run(found["base"])
    return found


def _check_keys(tree: dict[str, Any], known: set[str], path: str | None) -> None:
    for key, value in tree.items():
        if key not in known:
            raise UsageError(f"{path}: {cli.unknown(key, known)}")
        if key in SECTIONS:
            if not isinstance(value, dict):
                raise UsageError(f"{path}: {key} is a section of keys, but holds {value!r}.")
            for inner in value:
                if f"{key}.{inner}" not in known:
                    raise UsageError(f"{path}: {cli.unknown(f'{key}.{inner}', known)}")


def schema() -> dict:
    """JSON schema of the YAML, for completion and checks in editors."""
    from pydantic import ConfigDict, TypeAdapter

    for cls in (EvalJob, *SECTIONS.values()):
        cls.__pydantic_config__ = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **TypeAdapter(EvalJob).json_schema(),
        "title": "configs/eval.yaml",
    }
