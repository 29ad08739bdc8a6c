"""Checkpoints that can be trusted: a folder counts only once DONE.json, written last, lists the SHA-256 of every file.

There is one mechanism for Ray's own restarts and for --resume: both ask `latest` for the newest folder that is whole.
Ray's checkpoint objects are not used, because Ray uploads files in no particular order and keeps no hashes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from lib import manifest
from lib.manifest import DONE, hashes
from lib.run import Run

ASIDE = "damaged-"
"""Before the name of a checkpoint that failed its check: kept until a newer whole one stands."""


def steps(run: Run) -> list[int]:
    """Steps of the checkpoint folders that exist, whole or not, oldest first."""
    names = run.folders("checkpoints")
    found = [n.removeprefix("checkpoint-") for n in names if n.startswith("checkpoint-")]
    return sorted(int(n) for n in found if n.isdigit())  # a copy that somebody made has another name


def damage(run: Run, step: int) -> str | None:
    """Why the checkpoint of `step` can't be used, or None if every byte is as it was written."""
    return manifest.damage(run, f"checkpoints/checkpoint-{step}")


def latest(run: Run) -> tuple[int | None, list[str]]:
    """(step of the newest whole checkpoint or None, a line for each newer one that was refused)."""
    refused = []
    for step in reversed(steps(run)):
        why = damage(run, step)
        if why is None:
            return step, refused
        refused.append(f"checkpoint-{step} refused: {why}")
    return None, refused


def set_aside_after(run: Run, step: int | None) -> None:
    """Clears the way for the steps after `step` (all for None), which will be written again. Half-written checkpoints are removed;
    one that was whole once is renamed, so that nothing that could be rescued is lost before a newer one stands."""
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
        for name in [n for n in run.folders("checkpoints") if n.startswith(ASIDE)]:
            if int(name.rsplit("-", 1)[1]) <= whole[-1]:
                run.remove(f"checkpoints/{name}")
    if run.remote and node_first:
        shutil.rmtree(folder)
    if many:
        dist.barrier()
