"""Checks that a finished run's model/ and adapter/ are still the files that provenance.json lists.

Sizes are always compared. SHA-256 is computed only if the files' stamps (size, times, inode) differ from those cached at the
last successful check, so checking an untouched model costs a few system calls.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import uuid
from pathlib import Path

from lib.run import Run, cache
from lib.runtime import checkpoint, manifest

PARTS = ("model", "adapter")
ADDED = ("adapter_config.json", "chat_template.jinja")
"""Files, besides weights, that from_pretrained would load if they were added to a run without them."""


def damage(run: Run) -> str | None:
    """Returns why the model of a finished run can't be used; None if it can, or if the run made no model. For a remote run only
    the sizes are compared; `model` checks the bytes after the download."""
    made = run.provenance()
    if "model_sha256" not in made:
        return None
    for part in PARTS:
        files = _listed(made, part)
        if part == "model" or files:
            sizes = run.files(part)
            why = f"{part}/ is missing" if not sizes else None
            why = why or (manifest.resized(sizes, files) if files else None) or _added(sizes, files)
            if not why and not run.remote:
                why = changed(Path(run.at(part)), files, made["model_sha256"])
            if why:
                return why if why.startswith(f"{part}/") else f"{part}/{why}"
    return None


def check(key: str, run: Run) -> None:
    """Raises ValueError, beginning with `key` and ending with the remedy, if the run's model is damaged."""
    if why := damage(run):
        raise ValueError(f"{key}: {run.path} can't be used: {why}. {_remedy(run)}")


def model(run: Run) -> str:
    """Returns the local folder of the run's model after checking it. A damaged download is repeated once.

    Raises ValueError if the run has no finished model, or a damaged one.
    """
    folder, made = run.model_dir(), run.provenance()
    if not run.remote:
        check("model", run)
        return folder
    for _ in range(2):
        files = _listed(made, "model")
        why = manifest.resized(_sizes(Path(folder)), files) if files else None
        if not (why := why or changed(Path(folder), files, made["model_sha256"])):
            return folder
        shutil.rmtree(folder)
        run.model_dir()
    raise ValueError(f"model: {run.path} can't be used: model/{why}. {_remedy(run)}")


def changed(folder: Path, files: dict | None, sha256: str) -> str | None:
    """Returns a description of the first file in a local folder whose bytes differ from those recorded; None if all match.

    files: {name: (bytes, SHA-256)}, which must all exist; None for a run of an earlier version, which recorded only `sha256`,
    the digest of the whole folder."""
    sha256 = manifest.digest(files) if files else sha256
    kept = cache("stamps", hashlib.sha256(str(folder).encode()).hexdigest()[:16])
    stamp = hashlib.sha256(repr((sha256, _stamps(folder, files))).encode()).hexdigest()
    if kept.is_file() and kept.read_text() == stamp:
        return None
    found = manifest.hashes(folder)
    if not files and manifest.digest(found) != sha256:
        return f"{folder.name}/ is not what the run wrote: its SHA-256 is not the one recorded"
    for name in files or {}:
        if tuple(found[name]) != tuple(files[name]):
            return f"{name} {manifest.CORRUPT}"
    with contextlib.suppress(OSError):  # without a writable cache, the bytes are read each time
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_name(f".{kept.name}.{uuid.uuid4().hex[:8]}")
        temporary.write_text(stamp)
        os.replace(temporary, kept)
    return None


def _listed(made: dict, part: str) -> dict | None:
    """Returns {name below the part: (bytes, SHA-256)}; None if provenance.json lists no files of it."""
    files = {n.removeprefix(f"{part}/"): v for n, v in made.get("files", {}).items() if n.startswith(f"{part}/")}
    return files or None


def _added(sizes: dict[str, int], files: dict | None) -> str | None:
    for name in sizes if files else ():
        if name not in files and (name in ADDED or name.endswith((".safetensors", ".safetensors.index.json"))):
            return f"{name} was added after the run had finished, and would be loaded"
    return None


def _sizes(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def _stamps(folder: Path, files: dict | None) -> list[tuple]:
    names = sorted(files or _sizes(folder))
    stats = [(folder / name).stat() for name in names]
    return [
        (n, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for n, s in zip(names, stats, strict=True)
    ]  # a write changes ctime even if mtime is set back


def _remedy(run: Run) -> str:
    stage = run.job().get("stage")
    again = f"python jobs/{stage}.py --resume {shlex.quote(run.path)}"
    if checkpoint.steps(run):
        return f"Rebuild it from the run's last checkpoint: {again}"
    if stage == "quantize":
        return f"Make it again: {again}"
    return f"The run keeps no checkpoint to rebuild it from. Train it again: {again}"
