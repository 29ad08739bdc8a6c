"""Parses the command line and YAML of jobs/eval.py into an EvalJob. Imports nothing heavy, so mistakes are reported within a second."""

from __future__ import annotations

import sys

from lib.config.command_line import Request
from lib.config.dataclass_cli import Typed
from lib.errors import UsageError
from lib.evals.job import EvalJob
from lib.evals.report.gate import Rule
from lib.run import Run

USAGE = "python jobs/eval.py --config configs/eval.yaml [--runs NAME … | --runs.NAME RUN] [--KEY VALUE …] [--dry-run]"
KEYS = Typed("eval", EvalJob, USAGE, ("runs", "task_data", "data.columns"), ("tasks", "decoding"))


def parse(argv: list[str] | None = None) -> Request:
    """Parses the arguments. Raises UsageError for an unknown key (with the nearest known one), a wrong type or an unreadable file."""
    d, dry_run, _ = KEYS.read(_runs(sys.argv[1:] if argv is None else argv))
    return Request(EvalJob(**{**d, "gate": [Rule(**r) for r in d["gate"]]}), dry_run)


def _runs(argv: list[str]) -> list[str]:
    """Rewrites `--runs base sft my=elsewhere/x` as --runs.NAME=ADDRESS, the form that jsonargparse reads."""
    out, i = [], 0
    while i < len(argv):
        words, i = [], i + 1
        if argv[i - 1] != "--runs":
            out.append(argv[i - 1])
            continue
        while i < len(argv) and not argv[i].startswith("--"):
            words.append(argv[i])
            i += 1
        out += [f"--runs.{name}={base}" for name, base in named(words).items()]
    return out


def named(words: list[str]) -> dict[str, str]:
    """Returns {name: run} for `--runs base sft my=elsewhere/x`: a bare word means runs/<word> if that is a run, and `base` means the
    model that the other runs were originally trained from."""
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
