"""Command line and YAML of jobs without a trainer, read into a dataclass whose fields are keys or sections of keys.

Imports nothing heavy, so a mistake is reported within a second. Jobs that train also have `train:`; see lib/stage/training_cli.py.
"""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from lib.config import command_line, config_file
from lib.errors import UsageError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


class Typed:
    """Reads the keys of `cls` for jobs/<stage>.py; fields that are dataclasses are sections of keys. open: keys whose entries the user
    names; lists: keys that take several words; resume: whether --resume RUN exists, which reads the run's stored configuration; in_file:
    keys of text that only the YAML has, because an option has their name."""

    def __init__(
        self,
        stage: str,
        cls: type,
        usage: str,
        open: tuple[str, ...] = (),
        lists: tuple[str, ...] = (),
        resume: bool = False,
        in_file: tuple[str, ...] = (),
    ):
        self.stage, self.cls, self.usage, self.in_file = stage, cls, usage, in_file
        kinds = config_file.types_of(cls)
        sections = {name: kind for name, kind in kinds.items() if isinstance(kind, type) and is_dataclass(kind)}
        self.sections = sections
        self.open, self.lists, self.resume = open, lists, resume
        inner = {f"{s}.{f.name}" for s, kind in sections.items() for f in fields(kind)}
        self.known = {f.name for f in fields(cls)} | inner
        self.kinds = {key: kind for key, kind in kinds.items() if key not in sections}
        for name, kind in sections.items():
            self.kinds |= config_file.types_of(kind, f"{name}.")
        self.options = {"config", "dry-run", "help", "schema"} | ({"resume"} if resume else set())

    def read(self, argv: list[str]) -> tuple[dict[str, Any], bool, str | None]:
        """Returns (values of the dataclass's fields, with sections built; whether it's a dry run; the run to resume).

        Raises UsageError for an unknown key, a wrong type or an unreadable file. `--schema` prints the schema and exits.
        """
        if "--schema" in argv:
            print(json.dumps(self.schema(), indent=1))
            raise SystemExit(0)
        argv = self._words(argv)
        path, resumed = (
            command_line.option(argv, "--config"),
            command_line.option(argv, "--resume") if self.resume else None,
        )
        command_line.refuse_clocks(argv, self.kinds)
        tree = config_file.read_yaml(path, self.kinds) if path else {}
        self._check_keys(tree, path)
        from_file = {key: tree.pop(key) for key in self.in_file if key in tree}
        stored = command_line.stored(resumed, self.stage) if resumed else {}
        d = command_line.parsed(
            self._parser(), argv, tree if path else stored
        )  # without a file, the run's stored configuration
        dry_run, resume = d.pop("dry_run"), d.pop("resume", None)
        d = {k: v for k, v in d.items() if k not in ("config", "schema")} | from_file
        return d | {name: kind(**d[name]) for name, kind in self.sections.items()}, dry_run, resume

    def _words(self, argv: list[str]) -> list[str]:
        """Refuses options that don't exist; turns `--tasks demo kl`, `--tasks demo,kl` and `--decoding greedy
        t=0.7,top_p=0.9` (where a comma is part of a word) into what jsonargparse reads."""
        out, i, there = [], 0, self.known | self.options
        while i < len(argv):
            option, i = argv[i], i + 1
            out.append(option)
            key = option[2:].split("=")[0] if option.startswith("--") else None
            if key and key not in there and not any(key.startswith(f"{k}.") for k in self.open):
                near = key if key.split(".")[0] in self.sections else key.split(".")[0]
                raise UsageError(command_line.unknown(near, there, "--"))
            if key in self.lists:
                values = option.split("=", 1)[1:]
                while i < len(argv) and not argv[i].startswith("--"):
                    values.append(argv[i])
                    i += 1
                if len(values) != 1 or not values[0].startswith("["):
                    split = [[value] if key == "decoding" else value.split(",") for value in values]
                    values = [json.dumps([v for several in split for v in several if v])]
                out[-1] = f"--{key}={values[0]}"
        return out

    def _parser(self) -> ArgumentParser:
        from jsonargparse import ArgumentParser, set_parsing_settings

        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        parser = ArgumentParser(prog=f"jobs/{self.stage}.py", usage=self.usage, exit_on_error=False, default_env=False)
        parser.add_argument("--config", action="config", help="YAML file with the keys below")
        parser.add_argument(
            "--dry-run", dest="dry_run", action="store_true", help="check everything, print the plan, start nothing"
        )
        if self.resume:
            parser.add_argument("--resume", metavar="RUN", help="go on with this run")
        parser.add_argument("--schema", action="store_true", help="print the JSON schema of the YAML, for editors")
        parser.add_class_arguments(self.cls, skip=set(self.in_file))
        return parser

    def _check_keys(self, tree: dict[str, Any], path: str | None) -> None:
        for key, value in tree.items():
            if key not in self.known:
                raise UsageError(f"{path}: {command_line.unknown(key, self.known)}")
            if key in self.sections:
                if not isinstance(value, dict):
                    raise UsageError(f"{path}: {key} is a section of keys, but holds {value!r}.")
                for inner in value:
                    if f"{key}.{inner}" not in self.known:
                        raise UsageError(f"{path}: {command_line.unknown(f'{key}.{inner}', self.known)}")
            elif key in self.in_file and not isinstance(value, str):
                raise UsageError(f"{path}: {key}: must be text, is {value!r}.")

    def schema(self) -> dict:
        """JSON schema of the YAML, for completion and checks in editors."""
        from pydantic import ConfigDict, TypeAdapter, with_config

        for cls in (self.cls, *self.sections.values()):
            with_config(ConfigDict(extra="forbid", use_attribute_docstrings=True))(cls)
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **TypeAdapter(self.cls).json_schema(),
            "title": f"configs/{self.stage}.yaml",
        }
