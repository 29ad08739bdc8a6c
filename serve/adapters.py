"""LoRA runs of one base model: named one by one, or all those in a folder of runs, including ones added later."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from lib.models import load, locate
from lib.run import Run

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM's --max-lora-rank accepts."""
LATER = 64
"""Lowest rank to reserve room for when runs may be added later."""
KEEP_BASE = (True, False, "gaussian", "orthogonal")
"""Values of init_lora_weights that leave the base's weights as they are. With others, such as pissa, the adapter is one of a changed base,
and added to the base itself it would answer as no model that was trained."""


def folder(key: str, address: str, base: str) -> str:
    """Returns the adapter folder that a finished LoRA run of `base` has beside its merged model. Raises ValueError naming `key`."""
    where, _ = locate.locate_for(key, address)
    run = Run(where)
    if not run.is_run() or not run.fs.exists(run.at("adapter/adapter_config.json")):
        raise ValueError(f"{key}: {address} has no adapter: it is not a run with model.adapter: lora.")
    if kind := unlike_lora(json.loads(run.fs.cat_file(run.at("adapter/adapter_config.json")))):
        raise ValueError(
            f"{key}: {address} has a {kind} adapter, which vLLM can't add to a running base. Serve the run itself."
        )
    trained_on, _ = locate.locate(run.job()["model"]["base"])
    if trained_on != base:
        raise ValueError(f"{key}: {address} was trained on {trained_on}, but `run` is {base}.")
    trained, served = load.parent_template(where), Path(locate.path(base), "chat_template.jinja")
    if trained and served.is_file() and hashlib.sha256(served.read_bytes()).hexdigest() != trained:
        raise ValueError(
            f"{key}: {address} was trained with another chat template than that of {base}, which all adapters served "
            "with it use. Serve the run itself."
        )
    if run.remote:
        raise ValueError(f"{key}: {address} is remote; copy it here first, or serve the run itself.")
    if (high := rank(run.at("adapter"))) > RANKS[-1]:
        raise ValueError(f"{key}: {address} has rank {high}; vLLM takes at most {RANKS[-1]}. Serve the run itself.")
    return run.at("adapter")


def unlike_lora(config: dict) -> str:
    """Returns the kind of an adapter that vLLM can't add to a base; "" if it can. config: PEFT's adapter_config.json."""
    if config["peft_type"] != "LORA":
        return config["peft_type"]
    start = config.get("init_lora_weights", True)
    return "DoRA" if config.get("use_dora") else "" if start in KEEP_BASE else f"LoRA from {start}"


def rank(adapter: str) -> int:
    """Returns the highest rank of the adapter in this folder."""
    config = json.loads(Path(adapter, "adapter_config.json").read_text())
    return max([config["r"], *(config.get("rank_pattern") or {}).values()])


def room(ranks: list[int]) -> int:
    """Returns the smallest --max-lora-rank that fits all `ranks`. vLLM reserves that much memory for every adapter."""
    return next(r for r in RANKS if r >= max(ranks))


class Shelf:
    """The finished LoRA runs of `base` directly below the folder `root`, by name. Every call rereads the folder."""

    def __init__(self, root: str, base: str):
        self.root, self.base = Path(root), base
        self.seen: dict[str, tuple[int, str | None]] = {}
        """{run: (mtime of its provenance.json in ns, its adapter or None)}, so that an unchanged run is checked only once."""

    def names(self) -> dict[str, str]:
        """Returns {name: folder with the adapter}."""
        found = {p.parent.name: self._adapter(p) for p in sorted(self.root.glob("*/provenance.json"))}
        return {name: adapter for name, adapter in found.items() if adapter}

    def find(self, name: str) -> str | None:
        """Returns the adapter's folder, or None. A name that isn't an entry of the folder, such as ../x, finds nothing."""
        if name not in {p.name for p in self.root.iterdir()}:
            return None
        file = self.root / name / "provenance.json"
        return self._adapter(file) if file.is_file() else None

    def _adapter(self, provenance: Path) -> str | None:
        name, written = provenance.parent.name, provenance.stat().st_mtime_ns
        if self.seen.get(name, (0, None))[0] != written:
            try:
                self.seen[name] = written, folder("adapters_from", str(provenance.parent), self.base)
            except ValueError:  # unfinished, not a LoRA run, or of another base
                self.seen[name] = written, None
        return self.seen[name][1]
