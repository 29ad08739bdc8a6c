"""The divergence from the reference model: its estimators, the reward of each token that it is part of, and its coefficient.

Shapes: B answers, T positions; mask_BT is True at the tokens of an answer, which are contiguous in a row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """log π(y) − log π_ref(y) for y drawn from π: unbiased, can be below 0. http://joschu.net/blog/kl-approx.html"""
    return logp - ref_logp


def k2(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """½ (log π(y) − log π_ref(y))²: biased, less variance, never below 0. http://joschu.net/blog/kl-approx.html"""
    return 0.5 * (logp - ref_logp) ** 2


def k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """r − 1 − log r with r = π_ref(y) / π(y): unbiased, never below 0. http://joschu.net/blog/kl-approx.html"""
    return (ref_logp - logp).exp() - 1 - (ref_logp - logp)


def token_rewards(kl_BT: Tensor, scores_B: Tensor, mask_BT: Tensor, coef: float) -> Tensor:
    """Returns the reward of each token (B, T).

        r_t = − β KL_t + [t is the answer's last token] score
        Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, eq. 2

    coef: β. The last token is the end token, if there is one; a penalty for answers without one (Huang et al. 2024,
    https://arxiv.org/abs/2403.17031) is part of the score, as the reward `unfinished` with a weight below 0.
    """
    ends_BT = mask_BT & ~torch.cat([mask_BT[:, 1:], torch.zeros_like(mask_BT[:, :1])], 1)
    return torch.where(mask_BT, -coef * kl_BT, 0) + torch.where(ends_BT, scores_B[:, None], 0)


def adapted(coef: float, kl: float, answers: int, target: float, horizon: float) -> float:
    """Returns the adaptive coefficient β after a batch of `answers` with a mean KL of `kl` nats an answer.

    e = clip(KL / KL_target − 1, −0.2, 0.2),    β ← β (1 + e · answers / horizon)
    Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, section 2.2, whose K_β = 0.1 per step is answers / horizon here.
    """
    return coef * (1 + max(-0.2, min(0.2, kl / target - 1)) * answers / horizon)
