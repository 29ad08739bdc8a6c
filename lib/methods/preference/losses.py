"""The losses of KTO, ORPO, SimPO and CPO as functions of log probabilities, independent of any trainer.

Shapes: B answers, P pairs. log π(y|x) is a sum over the answer's tokens, unless the name contains "mean".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def kto(ratio_B: Tensor, wanted_B: Tensor, kl: float, beta: float, desirable: float, undesirable: float) -> Tensor:
    """λ_y − v(x, y) without its constant, for each answer (B,):

        desirable     λ_D (1 − σ(β (r − z₀)))
        undesirable   λ_U (1 − σ(β (z₀ − r)))        r = log π(y|x)/π_ref(y|x)

    Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, section 4.1. wanted_B: bool; kl: z₀, which has no gradient.
    """
    import torch

    sign_B = torch.where(wanted_B, 1.0, -1.0)
    weight_B = torch.where(wanted_B, desirable, undesirable)
    return weight_B * (1 - torch.sigmoid(beta * sign_B * (ratio_B - kl)))


def odds_ratio(chosen_mean_P: Tensor, rejected_mean_P: Tensor) -> Tensor:
    """−log σ(log odds(y⁺) − log odds(y⁻)) for each pair (P,), with odds = p/(1 − p) and log p the mean log probability of a token.

    Hong et al. 2024, https://arxiv.org/abs/2403.07691, eq. 4 and 7.
    """
    from torch.nn.functional import logsigmoid

    return -logsigmoid(_log_odds(chosen_mean_P.float()) - _log_odds(rejected_mean_P.float()))


def simpo(chosen_mean_P: Tensor, rejected_mean_P: Tensor, beta: float, gamma: float, smoothing: float = 0.0) -> Tensor:
    """−log σ(β · (mean log π(y⁺|x) − mean log π(y⁻|x)) − γ) of each pair (P,), the means over the tokens of an answer.

    Meng et al. 2024, https://arxiv.org/abs/2405.14734, eq. 6. smoothing: ε, the assumed share of pairs whose labels are swapped.
    """
    return _smoothed(beta * (chosen_mean_P - rejected_mean_P) - gamma, smoothing)


def cpo(chosen_P: Tensor, rejected_P: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """−log σ(β · (log π(y⁺|x) − log π(y⁻|x))) of each pair (P,). Xu et al. 2024, https://arxiv.org/abs/2401.08417, eq. 3."""
    return _smoothed(beta * (chosen_P - rejected_P), smoothing)


def _smoothed(margin_P: Tensor, smoothing: float) -> Tensor:
    from torch.nn.functional import logsigmoid

    return -(1 - smoothing) * logsigmoid(margin_P) - smoothing * logsigmoid(-margin_P)


def _log_odds(logp: Tensor) -> Tensor:
    """log p/(1 − p). The numerically exact form of log(1 − p) near p = 1 differs from the one near 0 (Mächler 2012)."""
    import torch

    logp = logp.clamp(max=-1e-7)  # p = 1 has no finite odds
    # Each branch gets arguments at which it is finite: an infinite gradient of the unused branch would become NaN in where().
    near_one = torch.log(-torch.expm1(logp.clamp(min=-math.log(2))))
    near_zero = torch.log1p(-torch.exp(logp.clamp(max=-math.log(2))))
    return logp - torch.where(logp > -math.log(2), near_one, near_zero)
