"""Checkpoints that can be trusted: a folder counts only once DONE.json, written last, lists the SHA-256 of every file.

There is one mechanism for Ray's own restarts and for --resume: both ask `latest` for the newest folder that is whole.
Ray's checkpoint objects are not used, because Ray uploads files in no particular order and keeps no hashes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from lib.run import Run

DONE = "DONE.json"


def steps(run: Run) -> list[int]:
    """Steps of the checkpoint folders that exist, whole or not, oldest first."""
    names = run.folders("checkpoints")
    return sorted(int(n.removeprefix("checkpoint-")) for n in names if n.startswith("checkpoint-"))


def damage(run: Run, step: int) -> str | None:
    """Why the checkpoint of `step` can't be used, or None if every byte is as it was written."""
    rel = f"checkpoints/checkpoint-{step}"
    if not run.fs.exists(run.at(f"{rel}/{DONE}")):
        return "half-written: it has no DONE.json"
    try:
        manifest = json.loads(run.read_text(f"{rel}/{DONE}"))["files"]
    except (ValueError, KeyError):
        return "DONE.json is damaged"
    sizes = run.files(rel)
    for name, (size, digest) in manifest.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != size:
            return f"{name} is truncated: {sizes[name]:,} of {size:,} bytes"
        with run.fs.open(run.at(f"{rel}/{name}"), "rb") as f:
            if hashlib.file_digest(f, "sha256").hexdigest() != digest:
                return f"{name} is corrupt: its SHA-256 is not the one recorded"
    return None


def latest(run: Run) -> tuple[int | None, list[str]]:
    """(step of the newest whole checkpoint or None, a line for each newer one that was refused)."""
    refused = []
    for step in reversed(steps(run)):
        why = damage(run, step)
        if why is None:
            return step, refused
        refused.append(f"checkpoint-{step} refused: {why}")
    return None, refused


def discard_after(run: Run, step: int | None) -> None:
    """Removes checkpoints newer than `step` (all of them for None): they are damaged, and will be written again."""
    for s in steps(run):
        if step is None or s > step:
            run.remove(f"checkpoints/checkpoint-{s}")


def fetch(run: Run, step: int, scratch: Path) -> str:
    """A local path of the checkpoint; a remote one is downloaded to `scratch` once per node."""
    rel = f"checkpoints/checkpoint-{step}"
    if not run.remote:
        return run.at(rel)
    from filelock import FileLock

    key = hashlib.sha256(run.read_text(f"{rel}/{DONE}").encode()).hexdigest()[:12]
    target = scratch / f"resume-{step}-{key}"
    scratch.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            run.get(rel, target)
    return str(target)


def scratch(run: Run) -> Path:
    """This node's folder for what is on its way to a remote run."""
    key = hashlib.sha256(run.path.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"shoestring-{os.getuid()}" / f"{run.name}-{key}"


def seal(run: Run, folder: Path, keep: int | None) -> None:
    """Publishes the checkpoint that the Trainer just wrote to `folder`: uploads it, then DONE.json, then drops old ones.

    Collective: every rank calls it. On a remote run each node's first rank uploads what its node wrote; on a shared
    or local disk everything is there already and rank 0 hashes it. `keep` newest whole checkpoints stay (None: all).
    """
    import torch.distributed as dist

    many = dist.is_initialized() and dist.get_world_size() > 1
    rank = dist.get_rank() if many else 0
    node_first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    rel = f"checkpoints/{folder.name}"
    if many:
        dist.barrier()  # every rank has finished writing its own files
    mine: dict[str, tuple[int, str]] = {}
    if rank == 0 or (run.remote and node_first):
        mine = hashes(folder)
        if run.remote:
            run.fs.put(f"{folder}/", f"{run.at(rel)}/", recursive=True)
    parts = [mine]
    if many:
        parts = [None] * dist.get_world_size()
        dist.all_gather_object(parts, mine)
    if rank == 0:
        files = {k: v for part in reversed(parts) for k, v in part.items()}
        run.write_json(f"{rel}/{DONE}", {"step": int(folder.name.split("-")[-1]), "files": files})
        whole = [s for s in steps(run) if run.fs.exists(run.at(f"checkpoints/checkpoint-{s}/{DONE}"))]
        for old in whole[:-keep] if keep else []:
            run.remove(f"checkpoints/checkpoint-{old}")
    if run.remote and node_first:
        shutil.rmtree(folder)
    if many:
        dist.barrier()


def hashes(folder: Path) -> dict[str, tuple[int, str]]:
    """{path below `folder`: (bytes, SHA-256)} of its files."""
    out = {}
    for p in sorted(q for q in folder.rglob("*") if q.is_file() and q.name != DONE):
        with p.open("rb") as f:
            out[str(p.relative_to(folder))] = (p.stat().st_size, hashlib.file_digest(f, "sha256").hexdigest())
    return out
