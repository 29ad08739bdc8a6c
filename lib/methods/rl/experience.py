"""A rollout as tensors: answers with the numbers that PPO's updates need, fixed until the next rollout.

Shapes: B rows of a micro-batch, T tokens, padded on the right; S columns in which some row has a place whose next token is its answer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.methods.rl.rollouts import Rollout


@dataclass
class Part:
    """A micro-batch. mask_BS: places whose next token is an answer's; the others are (B, S) in float32, at those places."""

    mask_BS: Tensor
    logp_BS: Tensor
    values_BS: Tensor
    kl_BS: Tensor
    """Estimate of the KL to the reference."""
    advantages_BS: Tensor | None = None
    returns_BS: Tensor | None = None


def batch(rollouts: Sequence[Rollout], kept: Sequence[bool], pad: int, number: int, device: torch.device) -> dict:
    """Returns input_ids, attention_mask and answer_mask (B, T) and the number of the micro-batch. kept: whether an answer counts; one that
    doesn't has no place in answer_mask."""
    rows = [r.prompt + r.answer for r in rollouts]
    width = max(map(len, rows))
    ids = [row + [pad] * (width - len(row)) for row in rows]
    read = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    answers = [
        [0] * len(r.prompt) + [int(keep)] * len(r.answer) + [0] * (width - len(row))
        for r, row, keep in zip(rollouts, rows, kept, strict=True)
    ]
    made = {"input_ids": ids, "attention_mask": read, "answer_mask": answers, "number": number}
    return {name: torch.tensor(value, device=device) for name, value in made.items()}


def places(batch: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (the columns that hold a place (S,), which rows have it there (B, S), the token that follows (B, S)).

    A row's answer stays contiguous among these columns. Without any answer S is 1.
    """
    at_BT = batch["answer_mask"][:, 1:].bool()
    columns_S = at_BT.any(0).nonzero()[:, 0]
    if not len(columns_S):
        columns_S = torch.zeros(1, dtype=torch.long, device=at_BT.device)
    return columns_S, at_BT[:, columns_S], batch["input_ids"][:, 1:][:, columns_S]
