"""A job's speed: its operations per token, and a device's operations per second as measured, or else as published.

A weight takes 2 operations per token forward and 4 backward (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, section 2.1), a
frozen one 2 less; attention 4·T·width forward and twice that backward; gradient checkpointing repeats the layers' forward.

Measured: tokens/s in provenance.json of finished runs times the operations per token of their jobs, cached per device. These
include all overhead of a real run (padding, small kernels, saving), so they are preferred to published figures.
"""

from __future__ import annotations

import json
import platform
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.estimate.anatomy import Anatomy
from cluster.market import gpus
from lib.run import Run, cache

UTILISATION = 0.3
"""Share of a GPU's published dense 16-bit speed that training reaches, used if nothing was measured; assumed. Well-tuned trainers
reach 0.3 to 0.5 with large models, less with small ones."""
NETWORK = 12.5e6
"""Bytes/s between machines of a market: 100 Mbit/s, RunPod's figure for its global network; assumed for all."""
DISK, STORE = 200e6, 50e6
"""Bytes/s at which a checkpoint is written and hashed, on a disk and to s3://, used if no run was measured; assumed."""


@dataclass(frozen=True)
class Measured:
    """Measurements of one finished run on its device."""

    run: str
    hardware: str
    precision: str
    stage: str
    workers: int
    flops: float
    """Operations per second of one worker."""
    start_s: float
    """Seconds of everything but training: starting Ray, loading, held-out loss, export."""
    save_bytes_per_s: float | None


@dataclass(frozen=True)
class Speed:
    flops: float
    """Operations per second of one device."""
    how: str
    """The source, for printing: measured: … or published: …"""


def per_token(a: Anatomy, mean: float, labelled: float, checkpointing: bool, forwards: int, teacher: int) -> float:
    """Returns the operations for one token of training. mean: tokens per sequence; labelled: share of tokens at which a loss is
    computed, the only ones that pass through the head; forwards: passes without gradient (1 for a reference model); teacher:
    parameters of a teacher model, 0 without one."""
    layers = 2 * a.multiplied + 4 * a.layers * mean * a.attention
    head = 2 * a.head * labelled
    full = a.trainable > a.adapter or not a.adapter
    frozen = 0 if full else 2 * (a.multiplied - a.adapter)
    backward = 2 * layers - frozen + head * (3 if a.head_trains else 2)  # the head's tile is recomputed
    again = layers if checkpointing else 0
    return layers + head + backward + again + forwards * (layers + head) + 2 * teacher


def speed(hardware: str, precision: str, stage: str, known: list[Measured]) -> Speed | None:
    """Returns the speed of a device by its name; None if nothing is known."""
    here = [m for m in known if m.precision == precision and _same(m.hardware, hardware)]
    here = [m for m in here if m.stage == stage] or here
    if here:
        return Speed(
            statistics.median(m.flops for m in here),
            f"measured: {', '.join(sorted(Path(m.run).name for m in here)[:3])}",
        )
    published = gpus.speed(hardware)
    if published:
        return Speed(published * 1e12 * UTILISATION, f"published: {UTILISATION:.0%} (assumed) of {published:g} TFLOPS")
    return None


def matmul(precision: str) -> Speed:
    """Estimates the speed of one core of this machine without a measured run: half (assumed) the speed of a matrix product of a
    layer's size."""
    import time

    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    best = 0.0
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        best = max(best, 2 * 512 * 1024 * 1024 / (time.perf_counter() - began))
    torch.set_num_threads(before)
    return Speed(best / 2, f"measured: half (assumed) of a matrix product's {best / 1e9:.0f} GFLOPS on one core")


def here(hardware: str) -> str:
    """Returns a device's name in provenance.json, prefixed by this machine's processor if it is a CPU."""
    return f"{processor()}, {hardware}" if hardware.startswith("cpu") else hardware


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next(
        (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.processor() or "cpu"
    )


def _same(one: str, other: str) -> bool:
    return one == other or gpus.words(one) == gpus.words(other)  # a market's name and torch's


def save_speed(run: Run) -> float | None:
    """Returns the bytes/s at which a local run wrote its newest checkpoint, from the first file to DONE.json; None if unknown."""
    folders = sorted(Path(run.at("checkpoints")).glob("checkpoint-*/DONE.json")) if not run.remote else []
    if not folders:
        return None
    files = [p.stat() for p in folders[-1].parent.rglob("*") if p.is_file()]
    took = folders[-1].stat().st_mtime - min(f.st_mtime for f in files)
    return sum(f.st_size for f in files) / took if took > 0.01 else None


def load() -> list[Measured]:
    file = cache("speeds.json")
    return [Measured(**m) for m in json.loads(file.read_text())] if file.is_file() else []


def remember(new: list[Measured]) -> list[Measured]:
    """Adds measurements to the cache, one per run, and returns all."""
    kept = {m.run: m for m in load()} | {m.run: m for m in new}
    Run(str(cache())).write_json("speeds.json", [asdict(m) for m in kept.values()])
    return list(kept.values())
