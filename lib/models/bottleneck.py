"""Bottleneck adapters: small networks in a row with the sublayers of each block of a decoder.

    y + W₂ σ(W₁ y + b₁) + b₂        W₁ (r, H), W₂ (H, r); y (…, H): a sublayer's output, before the block adds its input

houlsby has one after attention and one after the MLP of each block: Houlsby et al. 2019, https://arxiv.org/abs/1902.00751, section 2.1.
pfeiffer has only the second: Pfeiffer et al. 2020, https://arxiv.org/abs/2005.00247.

W₂ and b₂ start at zero, so training starts from the base exactly; the paper draws W₂ near zero. Houlsby et al. also train the norms; here they
stay frozen. σ is not linear, so that the network can't be merged into the base's weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from lib.errors import nearest
from lib.models.added import Added, linear

ACTIVATIONS = {"relu": nn.functional.relu, "gelu": nn.functional.gelu, "silu": nn.functional.silu, "tanh": torch.tanh}
ADDED = "bottleneck"
"""Name of the added module in each sublayer."""


@dataclass
class BottleneckConfig:
    r: int = field(default=64, metadata={"help": "Width of the bottleneck"})
    nonlinearity: Literal["relu", "gelu", "silu", "tanh"] = field(default="gelu", metadata={"help": "σ"})
    after_attention: bool = field(default=True, metadata={"help": "Whether attention has one too, besides the MLP"})

    def __post_init__(self):
        if self.nonlinearity not in ACTIVATIONS:
            near = nearest(self.nonlinearity, ACTIVATIONS)
            raise ValueError(f"nonlinearity: there is no {self.nonlinearity}.{near} Known: {', '.join(ACTIVATIONS)}.")


class Bottleneck(Added):
    def __init__(self, like: torch.Tensor, width: int, config: BottleneckConfig, draw: torch.Generator | None):
        super().__init__()
        self.down = linear(width, config.r, like, draw, bias=True)
        self.up = linear(config.r, width, like, None, bias=True)
        self.activation = ACTIVATIONS[config.nonlinearity]

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        added = self.up(self.activation(self.down(y.to(self.down.weight.dtype))))
        return y + added.to(y.dtype)


def blocks(model: nn.Module) -> list[nn.Module]:
    """Returns the decoder's blocks. Raises ValueError if they don't have attention and an MLP by the names of Llama's."""
    config = model.config.get_text_config()
    found = [
        m for m in model.modules() if all(isinstance(getattr(m, n, None), nn.Module) for n in ("self_attn", "mlp"))
    ]
    if len(found) != config.num_hidden_layers:
        raise ValueError(
            f"a bottleneck adapter needs blocks with self_attn and mlp, as Llama, Mistral, Qwen, Gemma and SmolLM have; {config.model_type} "
            "hasn't. Use model.adapter: lora."
        )
    return found


def add(model: nn.Module, config: BottleneckConfig, draw: torch.Generator | None) -> None:
    """Adds a network to each sublayer, in place. Raises as blocks does."""
    width = model.config.get_text_config().hidden_size
    for block in blocks(model):
        for sublayer in (block.self_attn, block.mlp) if config.after_attention else (block.mlp,):
            sublayer.add_module(ADDED, Bottleneck(next(block.parameters()), width, config, draw))
            sublayer.register_forward_hook(_after)


def _after(sublayer, given, out):
    added = getattr(sublayer, ADDED)
    return (added(out[0]), *out[1:]) if isinstance(out, tuple) else added(out)
