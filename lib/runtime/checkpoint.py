"""Verified checkpoints: a folder is valid only once it has a DONE.json, written last, with the SHA-256 of every file.

Ray's restarts and --resume use the same mechanism: `latest` finds the newest whole checkpoint. Ray's checkpoint objects are not
used, because Ray uploads files in no particular order and stores no hashes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from lib.run import Run
from lib.runtime import manifest
from lib.runtime.manifest import DONE, hashes

ASIDE = "damaged-"
"""Prefix of the name of a checkpoint that failed verification. It is kept until there is a newer whole one."""


def steps(run: Run) -> list[int]:
    """Returns the steps of all checkpoint folders, whole or not, in ascending order."""
    names = run.folders("checkpoints")
    found = [n.removeprefix("checkpoint-") for n in names if n.startswith("checkpoint-")]
    return sorted(int(n) for n in found if n.isdigit())  # skips copies made by hand, such as checkpoint-10-copy


def damage(run: Run, step: int) -> str | None:
    """Returns why the checkpoint of `step` can't be used, or None if it is intact."""
    return manifest.damage(run, f"checkpoints/checkpoint-{step}")


def latest(run: Run) -> tuple[int | None, list[str]]:
    """Returns (step of the newest whole checkpoint, or None; a line for each newer one that was refused)."""
    refused = []
    for step in reversed(steps(run)):
        why = damage(run, step)
        if why is None:
            return step, refused
        refused.append(f"checkpoint-{step} refused: {why}")
    return None, refused


def set_aside_after(run: Run, step: int | None) -> None:
    """Clears away the checkpoints after `step` (None: all), which training will write again.

    Removes half-written ones. Renames those with a DONE.json, so that their data can be rescued until there is a newer whole one.
    """
    for s in steps(run):
        if step is not None and s <= step:
            continue
        name = f"checkpoint-{s}"
        if run.fs.exists(run.at(f"checkpoints/{name}/{DONE}")):
            run.remove(f"checkpoints/{ASIDE}{name}")
            run.move(f"checkpoints/{name}", f"checkpoints/{ASIDE}{name}")
        else:
            run.remove(f"checkpoints/{name}")


def fetch(run: Run, step: int, scratch: Path) -> str:
    """Returns a local path of the checkpoint, downloading a remote one to `scratch` once per node."""
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
    """Returns this node's local folder for files that are downloaded from, or to be uploaded to, a remote run."""
    key = hashlib.sha256(run.path.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"shoestring-{os.getuid()}" / f"{run.name}-{key}"


def seal(run: Run, folder: Path, keep: int | None) -> None:
    """Publishes the checkpoint that the Trainer just wrote to `folder`: uploads it, writes DONE.json, and removes old checkpoints.

    Collective: every rank calls it. For a remote run, the first rank of each node uploads what its node wrote. On a local or shared
    disk the files are already in place, and rank 0 hashes them. The `keep` newest whole checkpoints are kept (None: all).
    """
    import torch.distributed as dist

    many = dist.is_initialized() and dist.get_world_size() > 1
    rank = dist.get_rank() if many else 0
    node_first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    rel = f"checkpoints/{folder.name}"
    if many:
        dist.barrier()  # wait until every rank has written its files
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
        for name in [n for n in run.folders("checkpoints") if n.startswith(ASIDE)]:
            if int(name.rsplit("-", 1)[1]) <= whole[-1]:
                run.remove(f"checkpoints/{name}")
    if run.remote and node_first:
        shutil.rmtree(folder)
    if many:
        dist.barrier()
