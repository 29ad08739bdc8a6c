"""LoRA runs of one base model: named one by one, or whatever a folder of runs holds, now or later."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from lib import models
from lib.run import Run

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""vLLM's choices."""
LATER = 64
"""Rank that there is room for where runs may come later."""


def folder(key: str, address: str, base: str) -> str:
    """Folder of the adapter that a finished LoRA run of `base` keeps beside its merged model. Raises ValueError with `key`."""
    where, _ = models.locate_for(key, address)
    run = Run(where)
    if not run.is_run() or not run.fs.exists(run.at("adapter/adapter_config.json")):
        raise ValueError(f"{key}: {address} keeps no adapter: it is not a run with model.adapter: lora.")
    trained_on, _ = models.locate(run.job()["model"]["base"])
    if trained_on != base:
        raise ValueError(f"{key}: {address} was trained on {trained_on}, not on {base}, which `run` says.")
    trained, served = models.parent_template(where), Path(models.path(base), "chat_template.jinja")
    if trained and served.is_file() and hashlib.sha256(served.read_bytes()).hexdigest() != trained:
        raise ValueError(
            f"{key}: {address} was trained with another chat template than {base} has, which every adapter on it is "
            "asked in. Serve the run itself."
        )
    if run.remote:
        raise ValueError(f"{key}: {address} is remote; copy it here first, or serve the run itself.")
    if (high := rank(run.at("adapter"))) > RANKS[-1]:
        raise ValueError(f"{key}: {address} has rank {high}; vLLM takes at most {RANKS[-1]}. Serve the run itself.")
    return run.at("adapter")


def rank(adapter: str) -> int:
    """The highest rank in the adapter's folder."""
    config = json.loads(Path(adapter, "adapter_config.json").read_text())
    return max([config["r"], *(config.get("rank_pattern") or {}).values()])


def room(ranks: list[int]) -> int:
    """The rank that vLLM is to make room for: all adapters cost what this one does, so no more than is needed."""
    return next(r for r in RANKS if r >= max(ranks))


class Shelf:
    """The finished LoRA runs of `base` directly below the folder `root`, by their names; looked at anew when asked."""

    def __init__(self, root: str, base: str):
        self.root, self.base = Path(root), base
        self.seen: dict[str, tuple[int, str | None]] = {}
        """{run: (when its provenance.json was written, its adapter or None)}, so that no run is judged twice."""

    def names(self) -> dict[str, str]:
        """{name: folder with the adapter}"""
        found = {p.parent.name: self._adapter(p) for p in sorted(self.root.glob("*/provenance.json"))}
        return {name: adapter for name, adapter in found.items() if adapter}

    def find(self, name: str) -> str | None:
        """Folder with the adapter. A name that is no entry of the folder, such as ../x, is none of its runs."""
        if name not in {p.name for p in self.root.iterdir()}:
            return None
        file = self.root / name / "provenance.json"
        return self._adapter(file) if file.is_file() else None

    def _adapter(self, provenance: Path) -> str | None:
        name, written = provenance.parent.name, provenance.stat().st_mtime_ns
        if self.seen.get(name, (0, None))[0] != written:
            try:
                self.seen[name] = written, folder("adapters_from", str(provenance.parent), self.base)
            except ValueError:  # not finished, no LoRA run, or of another base
                self.seen[name] = written, None
        return self.seen[name][1]
