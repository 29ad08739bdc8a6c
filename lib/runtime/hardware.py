"""The machine's GPUs, CPU cores, memory and precision, and the environment variables of its workers."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from lib.config.job import Scale

CGROUP = Path("/sys/fs/cgroup")
"""Folder with a container's limits (https://docs.kernel.org/admin-guide/cgroup-v2.html)."""


def local_gpus() -> int:
    """Returns the number of NVIDIA GPUs of this machine, regardless of CUDA_VISIBLE_DEVICES and without importing torch.

    The driver's library counts them, as for nvidia-smi (https://docs.nvidia.com/deploy/nvml-api). 0 without a driver.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return 0
    if nvml.nvmlInit_v2():
        return 0
    count = ctypes.c_uint()
    error = nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    nvml.nvmlShutdown()
    if error:
        raise RuntimeError(f"nvmlDeviceGetCount_v2 failed with NVML error {error}. Check that `nvidia-smi` works.")
    return count.value


def gpus() -> float:
    """Returns the number of GPUs that the cluster of this process has or can rent; without a cluster, those of this machine (`serve run`
    starts Ray later)."""
    import ray

    from lib.runtime import node_types

    joined = ray.is_initialized() or (os.environ.get("RAY_ADDRESS") and node_types.address())
    return node_types.most("GPU") if joined else local_gpus()


def local_cpus() -> int:
    """Returns the number of CPU cores as Ray counts them: all of the machine's or, in a container, the container's limit.

    As in Ray, a limit is rounded down (half a core is 0) and not capped at the machine's cores, since a job gets no more than Ray
    counts.
    """
    cores, limits = os.cpu_count() or 1, []
    if os.environ.get("RAY_USE_MULTIPROCESSING_CPU_COUNT"):  # makes Ray ignore the container's limits
        return cores
    if quota := _first(CGROUP / "cpu/cpu.cfs_quota_us", CGROUP / "cpu.max"):  # cgroups v1, v2
        amount, _, period = quota.partition(" ")
        period = period or _first(CGROUP / "cpu/cpu.cfs_period_us") or "100000"
        if amount.isdecimal():  # without a limit: -1 in v1, max in v2
            limits.append(int(amount) / int(period))
    if cpus := _first(CGROUP / "cpuset/cpuset.cpus"):  # v1; a list such as 0-3,8
        ends = [range_.split("-") for range_ in cpus.split(",")]
        limits.append(sum(int(end[-1]) - int(end[0]) + 1 for end in ends))
    return int(min(limits)) if limits else cores


def local_memory() -> int:
    """Returns this machine's memory in bytes or, in a container, the container's limit."""
    has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _first(CGROUP / "memory/memory.limit_in_bytes", CGROUP / "memory.max")  # cgroups v1, v2
    return min(has, int(limit)) if limit and limit.isdecimal() else has


def _first(*files: Path) -> str | None:
    """Returns the text of the first of these files that exists, or None."""
    return next((f.read_text().strip() for f in files if f.exists()), None)


def precision(wanted: str, device: str) -> str:
    """Returns "bf16", "fp16" or "fp32" for this process's device ("cpu" or "cuda"): `wanted`, unless that is auto.

    auto chooses bf16 only with hardware support: CUDA compute capability 8.0 (Ampere) and later, CPUs with avx512_bf16 or AMX. A T4
    (7.5) emulates bf16 at a fraction of its fp16 speed.
    """
    if wanted != "auto":
        return wanted
    import torch

    if device == "cuda":
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    real = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if real else "fp32"


DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""{precision: torch's name of the type}"""


def dtype(wanted: str, device: str) -> str:
    """Returns torch's name of the type of weights and arithmetic for inference: `wanted`; for auto, that of precision()."""
    return DTYPES[precision("auto", device)] if wanted == "auto" else wanted


def worker_env(scale: Scale, gpu: bool) -> dict[str, str]:
    """Returns the environment variables of a training worker. Ray sets them, because they must be set before torch is imported."""
    env = {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",  # compressed-tensors has no other switch
        "OMP_NUM_THREADS": str(scale.cpus_per_worker),
        # By default glibc returns freed memory to the kernel and faults it in again at every step: a third of the time of a CPU step.
        "MALLOC_MMAP_THRESHOLD_": "4294967296",
        "MALLOC_TRIM_THRESHOLD_": "17179869184",
        "MALLOC_TOP_PAD_": "268435456",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        # Ray Train's loop runs in a thread. The thread's own arena has heaps of 64 MB, so every larger tensor would be mapped anew.
        "MALLOC_ARENA_MAX": "1",
    }
    if "HF_HUB_OFFLINE" in os.environ:
        env["HF_HUB_OFFLINE"] = os.environ["HF_HUB_OFFLINE"]
    if not gpu:
        # DeepSpeed works only if accelerate assumes an accelerator (lib/distributed/strategy.py), so ACCELERATE_USE_CPU is false for it.
        zero = scale.strategy.startswith("zero")
        env |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "false" if zero else "true", "CUDA_VISIBLE_DEVICES": ""}
    return env


def room(key: str, workers: int | None, device: str = "auto") -> list[str]:
    """Returns the problem if this machine can't run `workers` models at once. On a cluster (RAY_ADDRESS) this is checked after
    connecting."""
    if not workers or os.environ.get("RAY_ADDRESS"):
        return []
    gpus = local_gpus() if device != "cpu" else 0
    have, what = (gpus, "GPUs") if gpus else (local_cpus(), "CPU cores")
    if workers <= have:
        return []
    return [
        f"{key}: {workers} models at the same time need as many {what}, this machine has {have}. Use {have}, or leave it out."
    ]
