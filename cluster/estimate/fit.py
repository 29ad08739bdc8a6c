"""Judges a job on one candidate machine: whether it fits, hours, dollars, how often to save; and, if not, which change makes it fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.estimate import candidates, preemption, throughput
from cluster.estimate.candidates import Candidate
from cluster.estimate.memory import Footprint
from cluster.estimate.workload import Work
from lib.config.adapters import ADAPTERS
from lib.runtime import hardware

MTBF_H = 8.0
"""Mean hours between preemptions of a spot machine. Assumed; set --mtbf-hours from your own experience."""
CALM_H = 720.0
"""Mean hours between failures of an on-demand machine. Assumed; used only for how often to save."""
START_S = 330.0
"""Seconds from a reachable machine to the first step: packages (INSTALL_GB, 125 s at 200 Mb/s), this project's code, Ray,
the weights. Assumed for rented machines."""
GONE_S = 300.0
"""Seconds from a preemption to a reachable replacement, in which nothing is paid. Assumed."""
RAY_BYTES = 1 << 30
"""Memory of the driver and Ray's own processes on a machine without a GPU. Assumed."""


@dataclass(frozen=True)
class Row:
    """The result for one candidate."""

    candidate: Candidate
    footprint: Footprint
    problem: str | None
    """Why the job can't run there; None: it can."""
    remedy: str | None
    """The smallest change with which it could run; None: none found."""
    speed: str | None
    """Source of the speed from which the hours follow; None: the speed or the number of steps is unknown."""
    hours: float | None = None
    usd: float | None = None
    """Including the hosts' charge for the traffic of boots."""
    wasted: float | None = None
    """Share of the hours after the first start spent on saving, restarting and repeated work."""
    preemptions: float | None = None
    save_steps: int | None = None
    sessions: int | None = None
    network: float = 0.0
    """Share of a step spent on exchanging gradients between machines."""
    boots_usd: float = 0.0
    """Part of usd for the traffic of boots: the first one and one per preemption."""


def judge(work: Work, c: Candidate, known: list[throughput.Measured], mtbf_hours: float) -> Row:
    s, gpu = work.job.scale, c.gpus > 0
    precision = hardware.precision(s.precision, "cpu") if not gpu else "bf16" if s.precision == "auto" else s.precision
    foot = work.footprint(gpu, precision)
    problem = _problem(work, c, foot)
    remedy = _remedy(work, c, precision) if problem else None
    name = throughput.here(c.device) if not gpu else c.device
    fast = throughput.speed(name, precision, work.job.stage, known) or (None if gpu else throughput.matmul(precision))
    steps = work.steps()
    if not fast or not steps:
        return Row(c, foot, problem, remedy, None)
    alone = work.tokens_per_step() * work.operations(gpu, precision) / (fast.flops * s.workers)
    n = c.machines
    exchange = 2 * (n - 1) / n * work.anatomy(gpu, precision).trainable_bytes / throughput.NETWORK
    step = alone + exchange
    remote = work.job.run.startswith("s3://")
    here = [m for m in known if m.hardware == name]
    rates = [m.save_bytes_per_s for m in here if m.save_bytes_per_s]
    rate = throughput.STORE if remote else rates[-1] if rates else throughput.DISK
    save = work.checkpoint_bytes() / rate
    start = here[-1].start_s if here and c.where == "this machine" else START_S
    mtbf = mtbf_hours * 3600 / n if c.spot else c.session_s or CALM_H * 3600 / n
    save_steps = min(steps, max(1, round(preemption.daly(save, mtbf) / step)))
    interval, total = save_steps * step, steps * step
    sessions = preemption.sessions(total, interval, save, start, c.session_s) if c.session_s else None
    e = preemption.expected(total, interval, save, start, GONE_S, mtbf if c.spot else math.inf)
    paid, spent = e.paid_seconds + start * (sessions or 1), e.seconds + start * (sessions or 1)
    boots = c.boot_usd * (n + e.preemptions)
    return Row(
        c, foot, problem, remedy, fast.how, spent / 3600, paid / 3600 * c.usd_per_hour * n + boots, e.wasted, e.preemptions,
        save_steps, sessions, exchange / step, boots,
    )  # fmt: skip


def _problem(work: Work, c: Candidate, foot: Footprint) -> str | None:
    s = work.job.scale
    if c.gpus == 0 and s.device == "gpu":
        return "scale.device requires GPUs"
    if c.gpus and s.device == "cpu":
        return "scale.device requires CPUs"
    if c.gpus * c.machines < s.workers and c.gpus:
        return f"{s.workers} workers need a GPU each, it has {c.gpus}"
    if c.gpus == 0:
        cores = hardware.local_cpus()
        if s.precision == "fp16":
            return "scale.precision: fp16 needs a GPU"
        if s.workers * s.cpus_per_worker > cores:
            return f"{s.workers} workers need {s.cpus_per_worker} of its {cores} cores each"
    need = foot.total if c.gpus else s.workers * foot.total + RAY_BYTES
    if need > c.memory:
        most = max(foot.parts, key=foot.parts.get)
        return f"needs {gib(need)}, has {gib(c.memory)}; the largest part is {most}, {gib(foot.parts[most])}"
    return None


CHANGES = (
    {"gradient_checkpointing": True},
    {"micro_batch": 1, "gradient_checkpointing": True},
    {"strategy": "zero3", "gradient_checkpointing": True},
    {"adapter": "lora", "gradient_checkpointing": True},
    {"adapter": "lora", "micro_batch": 1, "gradient_checkpointing": True},
    {"adapter": "lora", "quantization": "4bit", "micro_batch": 1, "gradient_checkpointing": True},
)
"""Changes tried in this order if a job doesn't fit, after a smaller micro_batch; those that don't change the result come first."""


def _remedy(work: Work, c: Candidate, precision: str) -> str | None:
    """Returns the first change with which the job would run there, or None."""
    smaller, size = [], work.job.scale.micro_batch // 2
    while size:
        smaller.append({"micro_batch": size})
        size //= 2
    workers = max(1, hardware.local_cpus() // work.job.scale.cpus_per_worker) if not c.gpus else c.gpus * c.machines
    fewer = {"workers": workers} if workers < work.job.scale.workers else {}
    for change in ([fewer] if fewer else []) + smaller + list(CHANGES):
        now = work.job.scale.workers
        if change.get("strategy") and (fewer or now == 1 or work.job.model.adapter != "none"):
            continue
        if change.get("adapter") and work.job.train.get("keep_layers"):
            continue
        if "adapter" in change and (has := work.job.model.adapter) != "none":
            if "quantization" in change and not ADAPTERS[has].quantized:
                continue
            change = change | {"adapter": has}
        try:
            other = work.changed(**fewer | change)
            foot = other.footprint(c.gpus > 0, precision)
        except ValueError:  # the global batch isn't divisible by that many workers
            return None
        if _problem(other, c, foot) is None:
            return ", ".join(
                f"{_section(k)}.{k}: {str(v).lower() if v is True else v}" for k, v in (fewer | change).items()
            )
    return None


def _section(key: str) -> str:
    return "model" if key in ("adapter", "quantization") else "train" if key == "gradient_checkpointing" else "scale"


def gib(n: float) -> str:
    return f"{n / candidates.GIB:.2f} GiB"
