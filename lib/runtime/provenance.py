"""Contents of provenance.json: a run's inputs and code version, each attempt at it, and how it ended."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from lib.run import Run
from lib.runtime.failure import StopTraining

PACKAGES = ("torch", "ray", "transformers", "trl", "peft", "accelerate", "deepspeed", "datasets", "bitsandbytes")


def origin(stage: str, job: dict, parent: str, identity: str, data: dict, packages: tuple[str, ...] = PACKAGES) -> dict:
    """Returns what is known when a run starts. job: the content of job.yaml; parent, identity: the result of
    lib.models.locate.locate."""
    return {
        "status": "running",
        "stage": stage,
        "parent": parent,
        "parent_sha256": identity,
        "data": data,
        "packages": {p: version(p) for p in packages},
        "git": git_state(),
        "config_sha256": hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest(),
        "command": " ".join(["python", f"jobs/{stage}.py", *sys.argv[1:]]),
    }


def git_state() -> str | None:
    """Returns the commit of the code, with "+dirty" if files differ from it; None outside a repository."""
    root = Path(__file__).parents[2]
    git = lambda *a: subprocess.run(["git", "-C", str(root), *a], capture_output=True, text=True)  # noqa: E731
    if not shutil.which("git") or (head := git("rev-parse", "HEAD")).returncode:
        return None
    return head.stdout.strip() + ("+dirty" if git("status", "--porcelain").stdout else "")


def record(run: Run, fields: dict) -> None:
    """Adds `fields` to provenance.json, or replaces them there."""
    run.write_json("provenance.json", run.provenance() | fields)


def pin(run: Run, key: str, identity: str, what: str) -> None:
    """Records the identity that workers found for the model or data of `key`. Raises StopTraining if the run was started with
    a different one. what: subject and verb of that message, such as "its weights are"."""
    pinned = run.provenance().get("identities", {})
    if pinned.setdefault(key, identity) != identity:
        raise StopTraining(
            f"{key}: {what} not what the run was started with ({pinned[key][:16]}, now {identity[:16]})."
        )
    record(run, {"identities": pinned})


def attempted(run: Run, began: float) -> list[dict]:
    """Returns the run's attempts, each {"began", "seconds", "ended"}, plus one that began at `began` (Unix time). A previous
    attempt without a recorded end counts as killed at the time of its last line in metrics.jsonl."""
    attempts = run.provenance().get("attempts", [])
    if attempts and "ended" not in attempts[-1]:
        last = max((row.get("time", 0.0) for row in run.metrics()[-1:]), default=0.0)
        attempts[-1] |= {"ended": "killed", "seconds": max(0.0, last - attempts[-1]["began"])}
    return [*attempts, {"began": began}]


def ended(run: Run, status: str, **fields) -> None:
    """Records how the current attempt ended: finished, failed or interrupted. Does nothing if the run doesn't exist yet."""
    if not run.is_run():
        return
    attempts = run.provenance().get("attempts", [])
    if attempts and "ended" not in attempts[-1]:
        attempts[-1] |= {"ended": status, "seconds": time.time() - attempts[-1]["began"]}
        fields |= {"attempts": attempts}
    record(run, {"status": status, "failure": None} | fields)


def ended_or_said(run: Run, status: str, **fields) -> None:
    """Does ended() for a run that an error stopped. If writing fails too (the disk or the store may be the cause), that error
    is printed and the first one stays the one to report."""
    try:
        ended(run, status, **fields)
    except Exception as lost:
        print(f"The run's provenance.json could not be written: {type(lost).__name__}: {lost}", file=sys.stderr)
