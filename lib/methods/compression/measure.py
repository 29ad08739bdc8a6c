"""Measures a model's memory and its speed in tokens per second. Each model is measured in a process of its own.

On a CPU, memory is the peak of the process's resident set (VmHWM in /proc/self/status), which is reset between loading and
answering (clear_refs, proc(5)). The size of the process before any weights are loaded is reported too, because Python, torch and
the engine take hundreds of megabytes with any model. On a GPU, memory is torch's peak of allocated bytes. vLLM allocates its
key-value cache in advance, so its figures include that cache.

Speed is measured on greedy answers, with one prompt and with 16 prompts at a time, and given as the median and range of the
repetitions.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

ALONE, TOGETHER, REPEATS = 6, 16, 3
"""Number of prompts answered one by one; number answered in one batch; repetitions of that batch."""


@dataclass
class Rate:
    """Tokens per second."""

    median: float
    low: float
    """The slowest repetition."""
    high: float
    tokens: int
    """Number of tokens generated in all repetitions."""


@dataclass
class Needs:
    loading_seconds: float
    empty_bytes: int
    """Memory of the process before any weight was read."""
    loading_bytes: int
    """Peak memory while loading."""
    answering_bytes: int
    """Peak memory while answering."""
    alone: Rate
    """One prompt at a time."""
    together: Rate
    """16 prompts at a time."""


def weights(folder: Path) -> int:
    """Returns the size in bytes of the weight files in `folder`."""
    return sum(p.stat().st_size for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))


def needs(base: str, vllm: bool, dtype: str, prompts: list, max_new_tokens: int) -> Needs:
    """Loads the model at `base` (a location from lib.models.locate.locate, or a run) and answers `prompts` (messages or texts) on one core.

    Must be called in a fresh process, because the peaks are those of the process.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from lib.generation import vllm_generator
    from lib.generation.sampling import Sampling
    from lib.generation.transformers_generator import TransformersGenerator
    from lib.models import locate
    from lib.runtime import hardware

    disable_progress_bar()
    folder = locate.path(base)
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if vllm:
        vllm_generator.environment("ERROR", device)
        from vllm import LLM  # noqa: F401  (the engine's own memory counts as part of the empty process)
    else:
        from transformers import LlamaForCausalLM  # noqa: F401
    kind = vllm_generator.VllmGenerator if vllm else TransformersGenerator
    empty = _now(device)
    _reset(device)
    began = time.time()
    generator = kind(folder, hardware.dtype(dtype, device), device)
    loaded = time.time() - began
    loading = _peak(device)
    sampling = Sampling(max_new_tokens=max_new_tokens)
    generator.generate(prompts[:1], sampling)  # warm-up: one-time set-up is not measured
    _reset(device)
    alone = _rate([_seconds(generator, [p], sampling) for p in prompts[:ALONE]])
    together = _rate([_seconds(generator, prompts[:TOGETHER], sampling) for _ in range(REPEATS)])
    return Needs(loaded, empty, loading, _peak(device), alone, together)


def _seconds(generator, prompts: list, sampling) -> tuple[int, float]:
    """Returns (number of tokens generated, seconds)."""
    began = time.perf_counter()
    answers = generator.generate(prompts, sampling)
    return sum(len(a[0].tokens) for a in answers), time.perf_counter() - began


def _rate(rounds: list[tuple[int, float]]) -> Rate:
    rates = [tokens / seconds for tokens, seconds in rounds]
    return Rate(statistics.median(rates), min(rates), max(rates), sum(tokens for tokens, _ in rounds))


def _status(field: str) -> int:
    """Returns a field of /proc/self/status in bytes."""
    with open("/proc/self/status", encoding="ascii") as f:
        line = next(x for x in f if x.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _now(device: str) -> int:
    import torch

    return torch.cuda.memory_allocated() if device == "cuda" else _status("VmRSS")


def _peak(device: str) -> int:
    import torch

    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _reset(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with open("/proc/self/clear_refs", "w", encoding="ascii") as f:
        f.write("5")  # sets VmHWM to VmRSS
