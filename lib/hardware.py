"""What the machine can do: device, arithmetic precision, and the environment its workers start with."""

from __future__ import annotations

import os

from lib.config import Scale


def local_gpus() -> int:
    """GPUs of this machine, counted without importing torch."""
    from ray._private.accelerators import NvidiaGPUAcceleratorManager

    return NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()


def gpus() -> float:
    """GPUs that the cluster of this process has or can have; of this machine where there is none, as `serve run` starts Ray later."""
    import ray

    from lib import node_types

    joined = ray.is_initialized() or (os.environ.get("RAY_ADDRESS") and node_types.address())
    return node_types.most("GPU") if joined else local_gpus()


def local_cpus() -> int:
    """CPU cores that Ray will find here: in a container, its share."""
    from ray._private.utils import get_num_cpus

    return get_num_cpus()


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
