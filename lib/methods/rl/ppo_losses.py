"""The two losses of proximal policy optimisation, as sums over tokens: a caller divides by the tokens of the global batch, so that a step
doesn't depend on its micro-batches and workers.

Shapes: B answers, T positions; mask_BT is True at the tokens of an answer.
"""

from __future__ import annotations

import torch
from torch import Tensor


def surrogate(
    logp_BT: Tensor, old_logp_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, cliprange: float
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate objective. Returns (Σ loss, number of tokens at which the clipped term is the larger loss).

    L_t = max(− ρ_t A_t, − clip(ρ_t, 1 − ε, 1 + ε) A_t),    ρ_t = π(y_t) / π_old(y_t)
    Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 7; details 8 and 12 of the 37 (Huang et al., ICLR blog 2022).
    """
    ratio_N = (logp_BT[mask_BT] - old_logp_BT[mask_BT]).exp()
    plain_N = -advantages_BT[mask_BT] * ratio_N
    clipped_N = -advantages_BT[mask_BT] * ratio_N.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(plain_N, clipped_N).sum(), (clipped_N > plain_N).sum()


def value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, cliprange: float
) -> tuple[Tensor, Tensor]:
    """The clipped loss of the value model. Returns (Σ loss, number of tokens at which the clipped term is the larger loss).

    L_t = ½ max((V_t − R_t)², (clip(V_t, V_old − ε, V_old + ε) − R_t)²)
    Detail 9 of the 37 (Huang et al., ICLR blog 2022). It isn't in the paper on PPO.
    """
    new_N, old_N, wanted_N = values_BT[mask_BT], old_values_BT[mask_BT], returns_BT[mask_BT]
    near_N = old_N + (new_N - old_N).clamp(-cliprange, cliprange)
    plain_N, clipped_N = (new_N - wanted_N) ** 2, (near_N - wanted_N) ** 2
    return 0.5 * torch.maximum(plain_N, clipped_N).sum(), (clipped_N > plain_N).sum()
