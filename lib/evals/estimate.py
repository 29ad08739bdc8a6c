"""How long the answers of an evaluation will take at most, and what that costs, before anything is started.

A process writes tokens at a rate that falls with the model's parameters, so their product is what the last evaluation on
this machine measured: kept in rates.json of lib.run's cache. Where there was none yet, a CPU is taken for the one in
TYPICAL, and a GPU's time isn't guessed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lib.packaged import package_version
from lib.run import cache

TYPICAL = 2.0e10
"""Parameters × tokens per second and core: SmolLM2-135M in bfloat16, 64 answers at a time (the quickstart's evaluation)."""
FEW = 500
"""Tokens; from fewer no rate is taken."""
SMALL = 10_000_000
"""Parameters; a smaller model's time is not its arithmetic, so it tells nothing of others."""


def parameters(base: str) -> int | None:
    """Of a model in a run or folder, by the headers of its safetensors files; None where they aren't on this disk."""
    if package := base.partition("package:")[2]:  # once it is unpacked
        folder = cache("models", f"{package}-{package_version(package)}")
    else:
        folder = Path(base, "model") if Path(base, "model").is_dir() else Path(base)
    total = 0
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        with file.open("rb") as f:
            head = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        for name, tensor in head.items():
            size = 1 if name != "__metadata__" else 0
            for n in tensor.get("shape", []):
                size *= n
            total += size
    return total or None


def remember(device: str, work: Iterable[dict], sizes: dict[str, int | None]) -> None:
    """Keeps the rate that an evaluation wrote answers at. work: Engine.timings(); sizes: {model: parameters}."""
    rows = [
        w for w in work if w["what"].startswith("answers") and w["seconds"] and (sizes.get(w["model"]) or 0) >= SMALL
    ]
    if sum(w["tokens"] for w in rows) < FEW or os.environ.get("RAY_ADDRESS"):  # a cluster's rate is not this machine's
        return
    rate = sum(w["tokens"] * sizes[w["model"]] for w in rows) / sum(w["seconds"] for w in rows)
    with suppress(OSError):  # a cache that can't be written costs the next plan its figure, not this report
        cache("rates.json").parent.mkdir(parents=True, exist_ok=True)
        cache("rates.json").write_text(json.dumps(_kept() | {device: rate}))


def line(bases: list[str], tokens: int, workers: int | None, usd_per_hour: float, device: str = "auto") -> str:
    """In words: minutes and dollars for each of the models to write so many tokens; "" where they aren't known."""
    from lib.hardware import local_cpus, local_gpus

    if os.environ.get("RAY_ADDRESS"):  # what the cluster has isn't known before it is joined
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
    """(seconds of one process for so many tokens of a model with `size` parameters, what that is taken from)."""
    if not size:
        return None
    if rate := _kept().get(device):
        return tokens * size / rate, "at the rate of the last evaluation here"
    return (tokens * size / TYPICAL, "at a common CPU's rate") if device == "cpu" else None


def _kept() -> dict[str, float]:
    try:
        found = json.loads(cache("rates.json").read_text())
        return {k: float(v) for k, v in found.items() if float(v) > 0}
    except (OSError, ValueError, TypeError, AttributeError):  # none yet, or damaged: the next evaluation writes it anew
        return {}
