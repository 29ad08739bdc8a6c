"""What a model needs: memory while it answers, and tokens per second, each model measured in a process of its own.

Memory is the process's resident set on a CPU, by Linux's own peak (VmHWM in /proc/self/status), which is set back
(clear_refs, proc(5)) between loading and answering, and beside it what the process held before any weights were there:
Python, torch and the engine take hundreds of megabytes whatever the model is. On a GPU it is torch's own peak of allocated
bytes. vLLM takes its cache of keys and values in advance, so there the weights are a part of what is shown.

Speed is of greedy answers: prompts one by one, and 16 at a time; the median of the repetitions, and the range of them.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

ALONE, TOGETHER, REPEATS = 6, 16, 3
"""Prompts answered one by one; prompts answered at a time; how often."""


@dataclass
class Rate:
    """Tokens per second."""

    median: float
    low: float
    """The slowest repetition."""
    high: float
    tokens: int
    """Written in all repetitions together."""


@dataclass
class Needs:
    loading_seconds: float
    empty_bytes: int
    """Held by the process before any weight was read."""
    loading_bytes: int
    """Peak while loading."""
    answering_bytes: int
    """Peak while answering."""
    alone: Rate
    """One prompt at a time."""
    together: Rate
    """16 prompts at a time."""


def weights(folder: Path) -> int:
    """Bytes of the files that hold weights."""
    return sum(p.stat().st_size for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))


def needs(base: str, vllm: bool, dtype: str, prompts: list, max_new_tokens: int) -> Needs:
    """Loads the model at `base` (as lib.models.locate returned it, or a run) and answers `prompts` (messages or texts) with
    one core. In a fresh process: else its peaks are those of what was there before."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from lib import hardware, models, vllm_generator
    from lib.sampling import Sampling
    from lib.transformers_generator import TransformersGenerator

    disable_progress_bar()
    folder = models.path(base)
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if vllm:
        vllm_generator.environment("ERROR")
        from vllm import LLM  # noqa: F401  (what the engine itself takes belongs to the empty process)
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
    generator.generate(prompts[:1], sampling)  # what is built at the first answer is not counted
    _reset(device)
    alone = _rate([_seconds(generator, [p], sampling) for p in prompts[:ALONE]])
    together = _rate([_seconds(generator, prompts[:TOGETHER], sampling) for _ in range(REPEATS)])
    return Needs(loaded, empty, loading, _peak(device), alone, together)


def _seconds(generator, prompts: list, sampling) -> tuple[int, float]:
    """(tokens written, seconds)"""
    began = time.perf_counter()
    answers = generator.generate(prompts, sampling)
    return sum(len(a[0].tokens) for a in answers), time.perf_counter() - began


def _rate(rounds: list[tuple[int, float]]) -> Rate:
    rates = [tokens / seconds for tokens, seconds in rounds]
    return Rate(statistics.median(rates), min(rates), max(rates), sum(tokens for tokens, _ in rounds))


def _status(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
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
