"""Models whose adapter can't be merged into their base: how they are written and loaded.

    model/  config.json  generation_config.json  the tokenizer's files
            base/        the base's weights
            adapter/     the adapter

The folder holds all that the model needs, so that a run can be moved without its base, and its hash covers the adapter. There are no weights
beside config.json: whatever doesn't know such a folder can't load the base alone by mistake.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lib.config.adapters import ADAPTERS
from lib.errors import nearest

FILE = "adapter_model.safetensors"


def is_unmerged(folder: str | Path) -> bool:
    """Whether the folder has a base and an adapter apart."""
    return Path(folder, "adapter", "adapter_config.json").is_file() and Path(folder, "base", "config.json").is_file()


def load(kind: Any, folder: str, **how: Any) -> Any:
    """Returns kind.from_pretrained(folder, **how) of any model/, with its adapter if that is apart. kind: a class of transformers.

    Raises ValueError if the adapter doesn't fit the base."""
    if not is_unmerged(folder):
        return kind.from_pretrained(folder, **how)
    from safetensors.torch import load_file
    from transformers import GenerationConfig

    from lib.models import added

    given = json.loads(Path(folder, "adapter", "adapter_config.json").read_text(encoding="utf-8"))
    if (name := given.pop("peft_type").lower()) not in ADAPTERS:
        raise ValueError(f"{folder}/adapter: there is no adapter {name}.{nearest(name, ADAPTERS)}")
    model = kind.from_pretrained(str(Path(folder, "base")), **how)
    model.generation_config = GenerationConfig.from_pretrained(folder)
    added.install(model, name, added.config(name, given))
    tensors, wanted = load_file(Path(folder, "adapter", FILE)), added.weights(model)
    if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in wanted.items()}:
        raise ValueError(f"{folder}/adapter holds other weights than its adapter_config.json and base/ need.")
    model.load_state_dict(tensors, strict=False)
    return model.requires_grad_(False)


def write(base: Any, adapter: Path, target: Path) -> None:
    """Writes the folder `target` of `base` (a loaded model) and of the adapter in the folder `adapter`, which is moved there."""
    target.mkdir(parents=True)
    base.save_pretrained(str(target / "base"))
    shutil.copy(target / "base" / "config.json", target)
    if (file := target / "base" / "generation_config.json").is_file():
        file.rename(target / file.name)
    adapter.rename(target / "adapter")
