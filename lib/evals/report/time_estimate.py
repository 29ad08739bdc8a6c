"""Estimates the maximum time and cost of an evaluation's answers before anything starts.

A process generates tokens at a rate inversely proportional to the model's parameters, so the product of both is measured: the
last evaluation on this machine stores it in rates.json in lib.run's cache. Before the first one, a CPU is assumed to reach
TYPICAL, and no estimate is made for a GPU.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lib.models.packaged_weights import package_version
from lib.run import cache

TYPICAL = 2.0e10
"""Parameters × tokens per second per core: SmolLM2-135M in bfloat16, 64 answers at a time (the quickstart's evaluation)."""
FEW = 500
"""Minimum number of tokens from which a rate is computed."""
SMALL = 10_000_000
"""Minimum number of parameters: a smaller model's time is dominated by overhead, so it doesn't predict other models' time."""


def parameters(base: str) -> int | None:
    """Returns the parameter count of the model in a run or folder, from its safetensors headers; None if they aren't on this
    disk."""
    if package := base.partition("package:")[2]:  # known once the package is unpacked
        folder = cache("models", f"{package}-{package_version(package)}")
    else:
        folder = Path(base, "model") if Path(base, "model").is_dir() else Path(base)
    total = 0
    for file in sorted(folder.rglob("*.safetensors")) if folder.is_dir() else []:
        with file.open("rb") as f:
            head = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        for name, tensor in head.items():
            size = 1 if name != "__metadata__" else 0
            for n in tensor.get("shape", []):
                size *= n
            total += size
    return total or None


def remember(device: str, work: Iterable[dict], sizes: dict[str, int | None]) -> None:
    """Stores the rate at which an evaluation generated answers. work: Engine.timings(); sizes: {model: parameters}."""
    rows = [
        w for w in work if w["what"].startswith("answers") and w["seconds"] and (sizes.get(w["model"]) or 0) >= SMALL
    ]
    if sum(w["tokens"] for w in rows) < FEW or os.environ.get("RAY_ADDRESS"):  # a cluster's rate is not this machine's
        return
    rate = sum(w["tokens"] * sizes[w["model"]] for w in rows) / sum(w["seconds"] for w in rows)
    with suppress(OSError):  # without a writable cache only the next plan's estimate is lost
        cache("rates.json").parent.mkdir(parents=True, exist_ok=True)
        cache("rates.json").write_text(json.dumps(_kept() | {device: rate}))


def line(bases: list[str], tokens: int, workers: int | None, usd_per_hour: float, device: str = "auto") -> str:
    """Returns a sentence with the minutes and dollars for every model to generate `tokens` tokens; "" if that can't be estimated."""
    from lib.runtime.hardware import local_cpus, local_gpus

    if os.environ.get("RAY_ADDRESS"):  # the cluster's hardware isn't known before connecting to it
        return ""
    gpus = local_gpus() if device != "cpu" else 0
    took = [seconds("gpu" if gpus else "cpu", tokens, parameters(base)) for base in bases]
    if None in took:
        return ""
    total, at_once = sum(s for s, _ in took), min(workers or 10**6, gpus or local_cpus())
    wall = total / at_once
    amount = f"{wall / 60:.0f} minutes" if wall >= 120 else f"{wall:.0f} s"
    priced = total if gpus else wall  # each model has a GPU to itself; on CPUs they share the machine
    usd = f", ${priced / 3600 * usd_per_hour:.2f}" if usd_per_hour else ""
    return f"about {amount} at most for those answers, {at_once} at a time{usd}, {took[0][1]}"


def seconds(device: str, tokens: int, size: int | None) -> tuple[float, str] | None:
    """Returns (seconds that one process takes to generate `tokens` with a model of `size` parameters, the source of the rate)."""
    if not size:
        return None
    if rate := _kept().get(device):
        return tokens * size / rate, "at the rate of the last evaluation here"
    return (tokens * size / TYPICAL, "at a common CPU's rate") if device == "cpu" else None


def _kept() -> dict[str, float]:
    try:
        found = json.loads(cache("rates.json").read_text())
        return {k: float(v) for k, v in found.items() if float(v) > 0}
    except (OSError, ValueError, TypeError, AttributeError):  # missing or damaged: the next evaluation rewrites it
        return {}
