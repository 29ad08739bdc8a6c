"""Chooses the device of a job on the driver, from what the machine or the cluster has or can rent; workers must then use it."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from lib.config.job import Scale
from lib.runtime import hardware, node_types
from lib.runtime.failure import StopTraining
from lib.runtime.node_types import NodeType

DRIVERS = {11: 450, 12: 525, 13: 580}
"""{CUDA major version: oldest NVIDIA driver that runs it} (docs.nvidia.com/deploy/cuda-compatibility, minor version compatibility)."""


@dataclass(frozen=True)
class Device:
    gpu: bool
    why: str = ""
    """Shown in the plan: the reason for the choice, and how to get the other device. "" if the job runs on this machine."""


def settle(s: Scale) -> Device | None:
    """Chooses the device of a training job. Returns None if the cluster of RAY_ADDRESS doesn't answer.

    Raises ValueError, naming the key, if the machine or the cluster has no room for the workers.
    """
    if not os.environ.get("RAY_ADDRESS"):
        return Device(_here(s))
    address = node_types.address()
    return _on(s, *node_types.known(address)) if address else None


def _here(s: Scale) -> bool:
    gpus, cpus = hardware.local_gpus(), hardware.local_cpus()
    if s.device == "gpu" and not gpus:
        raise ValueError(
            "scale.device: gpu, but this machine has none. Use device: auto, or submit to a cluster with GPUs."
        )
    use = gpus > 0 and s.device != "cpu"
    have, what, each = (gpus, "GPUs", 1) if use else (cpus, "CPU cores", s.cpus_per_worker)
    if s.workers * each > have:
        raise ValueError(
            f"scale.workers: {s.workers} × {each} {what} are needed, this machine has {have}. Use {max(have // each, 1)}, or submit to a cluster."
        )
    return use


def _on(s: Scale, types: list[NodeType], published: bool) -> Device:
    """published: whether `types` are all node types that the cluster can start, and not only the nodes that are up."""
    with_gpu = [t for t in types if t.resources.get("GPU", 0)]
    all_of_them = ", ".join(map(str, types)) or "none"
    if s.device == "gpu" and published and not with_gpu:
        raise ValueError(
            f"scale.device: gpu, but no node of this cluster has one: {all_of_them}. Give a node type of the cluster's YAML "
            "resources: {GPU: 1}, or use device: auto."
        )
    gpu = s.device == "gpu" or (s.device == "auto" and bool(with_gpu))
    if published:
        _check_room(s, with_gpu if gpu else types, gpu)
    if s.device != "auto":
        return Device(gpu, f"{'GPU' if gpu else 'CPU'}, as set by scale.device")
    if gpu:
        names = " and ".join(t.name for t in with_gpu)
        return Device(True, f"GPU, available on nodes of type {names}; to use CPUs: --scale.device cpu")
    if published:
        return Device(False, f"CPU, since no node of this cluster has a GPU: {all_of_them}")
    return Device(
        False,
        "CPU, since no running node has a GPU, and this cluster doesn't publish which nodes it can start; to wait for a GPU: --scale.device gpu",
    )


def _check_room(s: Scale, types: list[NodeType], gpu: bool) -> None:
    each = {"CPU": s.cpus_per_worker} | ({"GPU": 1} if gpu else {})
    shown = ", ".join(map(str, types))
    on_cpus = ", or train on CPUs (--scale.device cpu)" if gpu and s.device == "auto" else ""
    if types and not any(t.room(each) for t in types):
        most = int(max(t.resources.get("CPU", 0) for t in types))
        remedy = f"Use {most}{on_cpus}" if most else "Give a node type more cores in the cluster's YAML"
        beside = " beside a GPU" if gpu else ""
        raise ValueError(
            f"scale.cpus_per_worker: no node of this cluster has {s.cpus_per_worker} CPU cores{beside}: {shown}. {remedy}."
        )
    room, need = sum(t.most * t.room(each) for t in types), s.min_workers or s.workers
    if need > room:
        key = "scale.min_workers" if s.min_workers else "scale.workers"
        raise ValueError(
            f"{key}: {need} are needed, and this cluster has room for {room} at its maximum size: "
            f"{', '.join(f'{t.most} × {t}' for t in types)}. Use {room}, or raise max_workers in the cluster's YAML."
        )


def of_worker() -> str:
    """Returns "cuda" or "cpu" for this process. Raises StopTraining if Ray granted it a GPU that torch can't use, since training on the
    CPU would leave a paid GPU idle."""
    import ray
    import torch

    if not (ray.is_initialized() and ray.get_gpu_ids()):
        return "cuda" if torch.cuda.is_available() else "cpu"
    if why := unusable():
        raise StopTraining(why)
    return "cuda"


def unusable() -> str | None:
    """Returns why torch can't use this process's GPU, and the remedy; None if it can."""
    import torch

    if torch.cuda.is_available():  # queries the driver without allocating memory on the GPU
        return None
    try:
        torch.cuda.init()
        reason = "it finds none"
    except (RuntimeError, AssertionError) as e:
        reason = str(e).strip().splitlines()[0].split(". ")[0].rstrip(".")
    where, cuda, on_cpus = platform.node(), torch.version.cuda, "--scale.device cpu (--device cpu of an evaluation)"
    if cuda is None:
        need = "This build of torch has no CUDA: install a build with CUDA on the nodes"
    else:
        oldest, found = DRIVERS.get(int(cuda.split(".")[0]), "of its time"), driver()
        have = f"the driver of {where} is {found}" if found else f"{where} has no NVIDIA driver"
        need = f"It is built for CUDA {cuda}, which needs driver {oldest} or later, and {have}"
        need += ". Rent hosts with a newer driver (min_cuda in the ladder of the cluster's YAML)"
    return f"a worker on {where} was given a GPU that torch {torch.__version__} can't use: {reason}. {need}, or use CPUs: {on_cpus}."


def driver() -> str | None:
    """Returns the version of the NVIDIA driver loaded in this machine's kernel, or None."""
    file = Path("/proc/driver/nvidia/version")
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d+\.[\d.]+)", file.read_text()) if file.exists() else None
    return found[1] if found else None
