"""What the machine can do: device, arithmetic precision, and the environment its workers start with."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from lib.config import Scale

CGROUP = Path("/sys/fs/cgroup")
"""Where a container's limits are (https://docs.kernel.org/admin-guide/cgroup-v2.html)."""


def local_gpus() -> int:
    """NVIDIA GPUs of this machine, whatever CUDA_VISIBLE_DEVICES is; without importing torch.

    By the driver's library, as nvidia-smi counts them (https://docs.nvidia.com/deploy/nvml-api). 0 where there is no driver.
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
        raise RuntimeError(f"nvmlDeviceGetCount_v2 failed with NVML error {error}: is `nvidia-smi` in order?")
    return count.value


def gpus() -> float:
    """GPUs that the cluster of this process has or can have; of this machine where there is none, as `serve run` starts Ray later."""
    import ray

    from lib import node_types

    joined = ray.is_initialized() or (os.environ.get("RAY_ADDRESS") and node_types.address())
    return node_types.most("GPU") if joined else local_gpus()


def local_cpus() -> int:
    """CPU cores that Ray finds here: all of the machine's or, in a container, its share.

    Rounded down and not capped at the machine's cores, as in Ray: a job can be given no more than Ray counts, so half a core is 0.
    """
    cores, limits = os.cpu_count() or 1, []
    if os.environ.get("RAY_USE_MULTIPROCESSING_CPU_COUNT"):  # Ray's switch for ignoring the container
        return cores
    if quota := _first(CGROUP / "cpu/cpu.cfs_quota_us", CGROUP / "cpu.max"):  # cgroups v1, v2
        amount, _, period = quota.partition(" ")
        period = period or _first(CGROUP / "cpu/cpu.cfs_period_us") or "100000"
        if amount.isdecimal():  # no limit is -1 in v1, max in v2
            limits.append(int(amount) / int(period))
    if cpus := _first(CGROUP / "cpuset/cpuset.cpus"):  # v1: 0-3,8
        ends = [range_.split("-") for range_ in cpus.split(",")]
        limits.append(sum(int(end[-1]) - int(end[0]) + 1 for end in ends))
    return int(min(limits)) if limits else cores


def local_memory() -> int:
    """Bytes of memory that this machine has, or in a container its share."""
    has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _first(CGROUP / "memory/memory.limit_in_bytes", CGROUP / "memory.max")  # cgroups v1, v2
    return min(has, int(limit)) if limit and limit.isdecimal() else has


def _first(*files: Path) -> str | None:
    """The text of the first of these files that exists."""
    return next((f.read_text().strip() for f in files if f.exists()), None)


def precision(wanted: str, device: str) -> str:
    """ "bf16", "fp16" or "fp32" for this process's device ("cpu" or "cuda"); `wanted` other than auto is taken as it is.

    bf16 only where the arithmetic units are real: CUDA compute capability 8.0 (Ampere) and later, CPUs with
    avx512_bf16 or AMX. A T4 (7.5) emulates bf16 at a fraction of its fp16 speed.
    """
    if wanted != "auto":
        return wanted
    import torch

    if device == "cuda":
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    real = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if real else "fp32"


DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""torch's names of the precisions."""


def dtype(wanted: str, device: str) -> str:
    """The type of weights and arithmetic for a model that only answers: auto is what precision() says."""
    return DTYPES[precision("auto", device)] if wanted == "auto" else wanted


def worker_env(scale: Scale, gpu: bool) -> dict[str, str]:
    """Environment of a training worker. It has to be set before the worker imports torch, so it travels with Ray."""
    env = {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",  # compressed-tensors has no other switch
        "OMP_NUM_THREADS": str(scale.cpus_per_worker),
        # glibc gives freed memory back and faults it in again at every step: a third of the time of a CPU step.
        "MALLOC_MMAP_THRESHOLD_": "4294967296",
        "MALLOC_TRIM_THRESHOLD_": "17179869184",
        "MALLOC_TOP_PAD_": "268435456",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        # Ray Train's loop runs in a thread, whose own arena is cut into 64 MB heaps: larger tensors would be mapped anew.
        "MALLOC_ARENA_MAX": "1",
    }
    if "HF_HUB_OFFLINE" in os.environ:
        env["HF_HUB_OFFLINE"] = os.environ["HF_HUB_OFFLINE"]
    if not gpu:
        # DeepSpeed needs accelerate to believe in an accelerator (lib/strategy.py), so it is not told about the CPU.
        zero = scale.strategy.startswith("zero")
        env |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "false" if zero else "true", "CUDA_VISIBLE_DEVICES": ""}
    return env
