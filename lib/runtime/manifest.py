"""Manifest of a run's folder: DONE.json, written last, lists each file's size and SHA-256, against which the folder is checked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from lib.run import Run

DONE = "DONE.json"


def hashes(folder: Path) -> dict[str, tuple[int, str]]:
    """Returns {path below `folder`: (bytes, SHA-256)} of its files, except DONE.json."""
    out = {}
    for p in sorted(q for q in folder.rglob("*") if q.is_file() and q.name != DONE):
        with p.open("rb") as f:
            out[str(p.relative_to(folder))] = (p.stat().st_size, hashlib.file_digest(f, "sha256").hexdigest())
    return out


def digest(files: dict) -> str:
    """Returns one SHA-256 over the result of `hashes`, also if it was read back from JSON."""
    return hashlib.sha256(repr(sorted((name, tuple(v)) for name, v in files.items())).encode()).hexdigest()


def seal(folder: Path, **more) -> None:
    """Writes DONE.json into a local folder."""
    (folder / DONE).write_text(json.dumps(more | {"files": hashes(folder)}, indent=1, sort_keys=True) + "\n")


def damage(run: Run, rel: str) -> str | None:
    """Returns why the folder `rel` can't be used, or None if every byte is as it was written."""
    if not run.fs.exists(run.at(f"{rel}/{DONE}")):
        return f"half-written: it has no {DONE}"
    try:
        listed = json.loads(run.read_text(f"{rel}/{DONE}"))["files"]
        files = {str(name): (int(size), str(sha)) for name, (size, sha) in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{DONE} is damaged"
    if why := resized(run.files(rel), files):
        return why
    for name, (_, sha) in files.items():
        with run.fs.open(run.at(f"{rel}/{name}"), "rb") as f:
            if hashlib.file_digest(f, "sha256").hexdigest() != sha:
                return f"{name} {CORRUPT}"
    return None


CORRUPT = "is corrupt: its SHA-256 is not the one recorded"


def resized(sizes: dict[str, int], files: dict) -> str | None:
    """Returns a description of the first of `files` that is missing or has another size than recorded; None if all match."""
    for name, (size, _) in files.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != size:
            what = "truncated" if sizes[name] < size else "too long"
            return f"{name} is {what}: {sizes[name]:,} of {size:,} bytes"
    return None
