"""The attention mask of packed texts: which positions each position sees.

Shapes: B blocks of T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

UNSEEN = -1e30
"""Added to the scores of positions that aren't seen, whose probability is then exactly 0. Finite in float32 and bfloat16."""


def seen(texts_BT: Tensor, prefix_BT: Tensor) -> Tensor:
    """Returns (B, T, T) bool: position i sees j if both belong to the same text and j ≤ i, or both are in its prefix.

    Raffel et al. 2020, https://arxiv.org/abs/1910.10683, figure 4. prefix_BT: bool.
    """
    length = texts_BT.shape[1]
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=texts_BT.device).tril()
    same_BTT = texts_BT[:, :, None] == texts_BT[:, None, :]
    both_BTT = prefix_BT[:, :, None] & prefix_BT[:, None, :]
    return same_BTT & (causal_TT | both_BTT)


def packed(texts_BT: Tensor, prefix_BT: Tensor) -> dict[str, Tensor]:
    """Returns the model's attention_mask, (B, 1, T, T), to be added to the scores, and position_ids, which begin anew in each text.

    Additive, because transformers' eager attention adds masks of any type: a bool mask would show every position the answer.
    """
    seen_BTT = seen(texts_BT, prefix_BT)
    mask_B1TT = torch.zeros(seen_BTT.shape, device=texts_BT.device).masked_fill(~seen_BTT, UNSEEN)[:, None]
    at_T = torch.arange(texts_BT.shape[1], device=texts_BT.device)
    new_BT = torch.ones_like(texts_BT, dtype=torch.bool)
    new_BT[:, 1:] = texts_BT[:, 1:] != texts_BT[:, :-1]
    first_BT = torch.where(new_BT, at_T, 0).cummax(1).values
    return {"attention_mask": mask_B1TT, "position_ids": at_T - first_BT}
