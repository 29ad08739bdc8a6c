"""The value model of PPO: the reward that it expects of an answer, before each of its tokens.

    ValueHead    a linear layer on the policy's last hidden states, of zeros at the start
    ValueBody    the model of a reward run, with weights of its own (Stiennon et al. 2020, https://arxiv.org/abs/2009.01325, section 3.4)

It is a part of the policy's module while it trains, so that DDP and ZeRO handle its weights as they do the policy's, and apart from it in
checkpoints and in the finished model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

NAME = "ppo_value_model"


class ValueHead(nn.Module):
    """hidden_size: of the policy."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.output = nn.Linear(hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, hidden_BSH: Tensor, batch: dict, columns_S: Tensor) -> Tensor:
        """Returns the values (B, S). hidden_BSH: the policy's, at the columns of the batch whose next token is an answer's."""
        return _projected(self.output, hidden_BSH)


class ValueBody(nn.Module):
    """model: a classifier with one output, as AutoModelForSequenceClassification loads it."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, hidden_BSH: Tensor, batch: dict, columns_S: Tensor) -> Tensor:
        read = {name: batch[name] for name in ("input_ids", "attention_mask")}
        states_BTH = self.model.base_model(**read, use_cache=False).last_hidden_state
        return _projected(self.model.score, states_BTH[:, columns_S])


def _projected(layer: nn.Module, hidden_BSH: Tensor) -> Tensor:
    """Returns the layer's only output, computed in the precision of its weights and never in autocast's."""
    with torch.autocast(hidden_BSH.device.type, enabled=False):
        return layer(hidden_BSH.to(next(layer.parameters()).dtype))[..., 0].float()


def install(policy: Any, value: nn.Module) -> None:
    """Makes `value` a part of the policy, below its adapter."""
    _base(policy).add_module(NAME, value)


def installed(policy: Any) -> nn.Module:
    return getattr(_base(policy), NAME)


@contextmanager
def removed(policy: Any) -> Iterator[None]:
    """Takes the value model out of the policy for a while, such as to save the policy alone."""
    base, value = _base(policy), installed(policy)
    delattr(base, NAME)
    try:
        yield
    finally:
        base.add_module(NAME, value)


def _base(policy: Any) -> Any:
    return policy.get_base_model() if hasattr(policy, "get_base_model") else policy
