"""Prefix tuning: N trained keys and values that every token of every layer attends to. Li and Liang 2021, https://arxiv.org/abs/2101.00190

    Attention(q, [P_K; K], [P_V; V])        P_K, P_V (G, N, D) of each layer, in front of the keys and values of the row

With prefix_projection a network makes them, P = MLP(P′) (section 4.3): a matrix P′ (N, H) and a layer with tanh are shared by all decoder
layers, and a linear layer of each makes its keys and values. Once training ends, only what it made is kept.

PEFT passes the prefix to the model as a cache of earlier tokens. That excludes gradient checkpointing and every computation that brings its own
cache or none, as this project's evaluation and serving do. Here attention itself puts the prefix in front of whatever it was given. The
prefix has no positions: its keys aren't rotated, and the row's tokens keep the positions they have in the base.

Shapes: B rows, T query tokens, L key tokens, N prefix vectors; A query heads, G key heads, D channels of a head; H channels of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from lib.models import cpu_attention
from lib.models.added import Added, linear

NAME = "trained_prefix"
"""Its attention function, by its name in transformers."""
ADDED = "prefix"
"""Name of the added module in each attention module."""
STD = 0.02
"""Standard deviation of new vectors."""


@dataclass
class PrefixConfig:
    num_virtual_tokens: int = field(default=20, metadata={"help": "N: keys and values in front of each layer's"})
    prefix_projection: bool = field(default=False, metadata={"help": "Whether a network makes them while they train"})
    encoder_hidden_size: int = field(default=512, metadata={"help": "Width of that network"})


class Prefix(Added):
    """The keys and values (G, N, D) of one layer. trunk: the part of the network that all layers share; None: there is no network."""

    def __init__(
        self, attention: nn.Module, config: PrefixConfig, trunk: nn.Module | None, draw: torch.Generator | None
    ):
        super().__init__()
        like = attention.k_proj.weight
        self.config, self.trunk = config, trunk
        self.shape = attention.k_proj.out_features // attention.head_dim, config.num_virtual_tokens, attention.head_dim
        if trunk is None:
            self.key, self.value = (_drawn(self.shape, like, draw) for _ in range(2))
        else:
            self.out = linear(config.encoder_hidden_size, 2 * self.shape[0] * self.shape[2], like, draw, bias=True)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.trunk is None:
            return self.key, self.value
        heads, number, channels = self.shape
        key, value = self.out(self.trunk()).view(number, 2, heads, channels).permute(1, 2, 0, 3)
        return key, value

    def settle(self) -> None:
        if self.trunk is not None:
            with torch.no_grad():
                self.key, self.value = (nn.Parameter(made.float().contiguous()) for made in self())
            self.trunk, self.config.prefix_projection = None, False
            del self.out


class Trunk(nn.Module):
    """P′ (N, H) and the first layer of the network: () → (N, encoder_hidden_size)."""

    def __init__(self, width: int, config: PrefixConfig, like: torch.Tensor, draw: torch.Generator | None):
        super().__init__()
        self.start = _drawn((config.num_virtual_tokens, width), like, draw, 1.0)
        self.hidden = linear(width, config.encoder_hidden_size, like, draw, bias=True)

    def forward(self) -> torch.Tensor:
        return torch.tanh(self.hidden(self.start))


def _drawn(shape, like: torch.Tensor, draw: torch.Generator | None, std: float = STD) -> nn.Parameter:
    made = torch.empty(shape, device=like.device, dtype=torch.float32)
    return nn.Parameter(nn.init.normal_(made, std=std, generator=draw) if draw else made)


def attentions(model: nn.Module) -> list[nn.Module]:
    """Returns the attention modules of the decoder. Raises ValueError if they aren't like Llama's."""
    config = model.config.get_text_config()
    parts = ("k_proj", "v_proj", "head_dim", "layer_idx", "num_key_value_groups")
    found = [m for m in model.modules() if all(hasattr(m, name) for name in parts)]
    other = getattr(config, "attn_logit_softcapping", None) or any(hasattr(m, "sinks") for m in found)
    if len(found) != config.num_hidden_layers or other:
        raise ValueError(
            f"prefix needs attention with k_proj and v_proj, a softmax of plain scores, in each layer, as Llama, Mistral, Qwen and SmolLM have; "
            f"{config.model_type} hasn't. Use model.adapter: lora."
        )
    return found


def add(model: nn.Module, config: PrefixConfig, draw: torch.Generator | None) -> None:
    """Adds the keys and values to each attention module, in place. Raises as attentions does."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    found = attentions(model)
    width, like = model.config.get_text_config().hidden_size, found[0].k_proj.weight
    trunk = Trunk(width, config, like, draw) if config.prefix_projection else None
    for attention in found:
        attention.add_module(ADDED, Prefix(attention, config, trunk, draw))
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def attend(module, query, key, value, attention_mask, **kwargs):
    """query (B, A, T, D), key and value (B, G, L, D), mask (B, 1, T, L) or None → (B, T, A, D), None. A module without a prefix, such as
    one of an encoder for images, is left alone."""
    if (prefix := getattr(module, ADDED, None)) is None:
        return cpu_attention.forward(module, query, key, value, attention_mask, **kwargs)
    read, length, rows = query.shape[2], key.shape[2], len(key)
    if attention_mask is None and read > 1:  # transformers leaves it out where PyTorch's is_causal would do
        attention_mask = query.new_ones(read, length, dtype=torch.bool).tril(length - read)[None, None]
    key, value = (
        torch.cat([made.to(own.dtype).expand(rows, -1, -1, -1), own], 2)
        for made, own in zip(prefix(), (key, value), strict=True)
    )
    if attention_mask is not None:
        open_to_all = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = nn.functional.pad(attention_mask, (key.shape[2] - length, 0), value=open_to_all)
    return cpu_attention.forward(module, query, key, value, attention_mask, **kwargs)
