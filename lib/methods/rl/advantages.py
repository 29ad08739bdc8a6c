"""Advantages: how much better a token was than the value model expected, and their scale.

Shapes: B answers, T positions. mask_BT is True at the tokens of an answer, which are contiguous in a row. What lies outside changes
nothing and comes back as 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation. Returns (advantages (B, T), returns (B, T)).

        δ_t = r_t + γ V_{t+1} − V_t,    A_t = δ_t + γλ A_{t+1},    R_t = A_t + V_t,    V = A = 0 after the last token
        Schulman et al. 2016, https://arxiv.org/abs/1506.02438, eq. 11 and 16; detail 5 of the 37
        (Huang et al., ICLR blog 2022).

    An answer that was cut off at its longest length ends there too: no value is added for what would have followed.
    """
    advantages_BT = torch.zeros_like(values_BT)
    next_value_B = next_advantage_B = torch.zeros_like(values_BT[:, 0])
    for t in reversed(range(rewards_BT.shape[1])):
        at_B = mask_BT[:, t]
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        next_advantage_B = torch.where(at_B, delta_B + gamma * lam * next_advantage_B, 0)
        next_value_B = torch.where(at_B, values_BT[:, t], 0)
        advantages_BT[:, t] = next_advantage_B
    return advantages_BT, advantages_BT + torch.where(mask_BT, values_BT, 0)


def whiten(
    x_BT: Tensor, mask_BT: Tensor, total: Callable[[Tensor], Tensor] = lambda sums: sums, shift_mean: bool = True
) -> Tensor:
    """Returns (x − mean) / √(variance + 10⁻⁸) over the masked tokens of the global batch; shift_mean=False: with the mean added again.

    The variance is unbiased (÷ n − 1), as in TRL and verl. total: sums a tensor over all workers.

    Huang et al. 2024, https://arxiv.org/abs/2403.17031, on whitening rewards and advantages. (Detail 7 of the 37 whitens the advantages of
    each minibatch.)
    """
    x_N = x_BT[mask_BT].double()
    count, summed = total(torch.stack([x_N.new_tensor(len(x_N)), x_N.sum()]))
    mean = summed / count.clamp(min=1)
    variance = total(((x_N - mean) ** 2).sum()) / (count - 1).clamp(min=1)
    white_N = (x_N - mean) * torch.rsqrt(variance + 1e-8) + (0 if shift_mean else mean)
    return torch.zeros_like(x_BT).masked_scatter(mask_BT, white_N.to(x_BT.dtype))
