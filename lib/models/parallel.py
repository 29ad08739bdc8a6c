"""The parallel adapter: r more channels beside those of each MLP, for decoders with gated MLPs such as Llama's.

    MLP(x) + s · D (act(G x) ⊙ U x)         He et al. 2022, https://arxiv.org/abs/2110.04366, table 1 and section 4.6

The paper's bottleneck is a two-layer ReLU network. This one is gated as the MLP itself is, so that it equals r further channels of the MLP:
the exported model is a plain one, with intermediate_size + r. D starts at zero, so training starts from the base.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType

import torch
from torch import nn

from lib.models.added import Added, linear

LINEARS = ("gate_proj", "up_proj", "down_proj")
ADDED = "parallel"
"""Name of the added module in each MLP."""


@dataclass
class ParallelConfig:
    r: int = field(default=32, metadata={"help": "Channels that are added to each MLP"})
    scaling: float = field(default=4.0, metadata={"help": "Factor s of the added channels' output. The paper's is 4"})


class Channels(Added):
    def __init__(self, mlp: nn.Module, config: ParallelConfig, draw: torch.Generator | None):
        super().__init__()
        like = mlp.gate_proj.weight
        width, self.scaling = like.shape[1], config.scaling
        for name in ("gate_proj", "up_proj"):
            setattr(self, name, linear(width, config.r, like, draw))
        self.down_proj = linear(config.r, width, like, None)

    def forward(self, x: torch.Tensor, act) -> torch.Tensor:
        x = x.to(self.gate_proj.weight.dtype)
        return self.scaling * self.down_proj(act(self.gate_proj(x)) * self.up_proj(x))


def mlps(model: nn.Module) -> list[nn.Module]:
    """Returns the MLPs of the decoder's layers. Raises ValueError if they aren't all gated ones of one width."""
    config = model.config.get_text_config()
    gated = [m for m in model.modules() if all(type(getattr(m, name, None)) is nn.Linear for name in LINEARS)]
    found = [m for m in gated if not isinstance(m, Channels)]
    width = config.intermediate_size if isinstance(getattr(config, "intermediate_size", None), int) else None
    if len(found) != config.num_hidden_layers or any(
        m.gate_proj.out_features != width or not hasattr(m, "act_fn") for m in found
    ):
        raise ValueError(
            f"parallel needs an MLP with {', '.join(LINEARS)} of one width in each layer, as Llama, Mistral, Qwen, Gemma and SmolLM have; "
            f"{config.model_type} hasn't. Use model.adapter: lora."
        )
    return found


def add(model: nn.Module, config: ParallelConfig, draw: torch.Generator | None) -> None:
    """Adds the channels to the model, in place. Raises as mlps does."""
    for mlp in mlps(model):
        mlp.add_module(ADDED, Channels(mlp, config, draw))
        mlp.forward = MethodType(_forward, mlp)


def _forward(self, x: torch.Tensor) -> torch.Tensor:
    out = type(self).forward(self, x)
    return out + getattr(self, ADDED)(x, self.act_fn).to(out.dtype)


def merge(base: nn.Module, trained: nn.Module, target: Path) -> None:
    """Writes `base` with the channels of `trained` to `target`."""
    for plain, wide in zip(mlps(base), mlps(trained), strict=True):
        added = getattr(wide, ADDED)
        for name in LINEARS:
            inner = name == "down_proj"
            more = getattr(added, name).weight.detach() * (added.scaling if inner else 1)
            before = getattr(plain, name)
            weight = torch.cat([before.weight, more.to(before.weight)], dim=1 if inner else 0)
            made = nn.Linear(weight.shape[1], weight.shape[0], bias=before.bias is not None, dtype=weight.dtype)
            with torch.no_grad():
                made.weight.copy_(weight)
                if before.bias is not None:  # the added channels have none
                    made.bias.zero_()[: len(before.bias)] = before.bias
            setattr(plain, name, made)
    base.config.get_text_config().intermediate_size += added.gate_proj.out_features
    base.save_pretrained(str(target))
