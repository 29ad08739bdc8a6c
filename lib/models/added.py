"""What this project's own adapters share: modules that are added to a frozen base, and files that hold only what trains.

Each adapter's file has `add(model, config, draw)`, which puts subclasses of Added into the model, in place.
"""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from lib.config.adapters import ADAPTERS

WEIGHTS = "model.safetensors"
"""File of a checkpoint, which a Trainer reads into the model without asking for the frozen weights."""


class Added(nn.Module):
    """A module of an adapter, in the model that it was added to."""

    def settle(self) -> None:
        """Replaces, once training has ended, what only helped it by what it results in."""


def linear(into: int, out: int, like: torch.Tensor, draw: torch.Generator | None, bias: bool = False) -> nn.Linear:
    """Returns a float32 layer on the device of `like`. draw: the weights are drawn as nn.Linear does, but from it; None: they are zero, as
    biases always are."""
    made = nn.Linear(into, out, bias=bias, device=like.device, dtype=torch.float32)
    if draw:
        nn.init.kaiming_uniform_(made.weight, a=math.sqrt(5), generator=draw)
    else:
        nn.init.zeros_(made.weight)
    if bias:
        nn.init.zeros_(made.bias)
    return made


def config(adapter: str, given: dict) -> Any:
    """Returns the config of an adapter. given: fields of it, such as model.peft."""
    chosen = ADAPTERS[adapter]
    module, name = chosen.config.split(":")
    return getattr(importlib.import_module(module), name)(**chosen.sets | chosen.defaults | given)


def install(model: Any, adapter: str, config: Any, seed: int = 0) -> Any:
    """Freezes the model and adds the adapter called `adapter` to it, in place; save_pretrained then writes only what trains.

    Raises ValueError if the model isn't one that the adapter can be added to."""
    device, draw = next(model.parameters()).device, None
    if device.type != "meta":
        draw = torch.Generator(device).manual_seed(seed)
    model.requires_grad_(False)
    importlib.import_module(ADAPTERS[adapter].config.split(":")[0]).add(model, config, draw)
    model.save_pretrained = MethodType(_save(adapter, config), model)
    return model


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns {name: tensor} of an installed adapter."""
    inside = {p for module in model.modules() if isinstance(module, Added) for p in module.parameters()}
    return {name: p.detach() for name, p in model.named_parameters() if p in inside}


def settle(model: nn.Module) -> None:
    for module in [m for m in model.modules() if isinstance(m, Added)]:
        module.settle()


def _save(adapter: str, config: Any):
    def save_pretrained(self, save_directory, **kwargs):
        """Writes the adapter and its config in the way of PEFT's."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({n: p.contiguous() for n, p in weights(self).items()}, folder / WEIGHTS)
        settings = json.dumps({"peft_type": adapter.upper()} | asdict(config), indent=2)
        (folder / "adapter_config.json").write_text(settings, encoding="utf-8")

    return save_pretrained
