"""Ways to combine what several models learnt from one base. θ₀: a tensor of the base; δᵢ = θᵢ − θ₀: what model i changed in it.

    linear       θ₀ + Σ wᵢ δᵢ      task arithmetic (Ilharco et al. 2023, https://arxiv.org/abs/2212.04089, section 2); with Σ wᵢ = 1 the
                                   weighted mean of the models (model soups, Wortsman et al. 2022, https://arxiv.org/abs/2203.05482)
    ties         each δᵢ keeps its largest entries, a share `density` of them; an entry's sign is that of the sum of what is left; θ₀ plus
                 the mean of wᵢ δᵢ over the models with that sign (Yadav et al. 2023, https://arxiv.org/abs/2306.01708, algorithm 1)
    dare_linear  each entry of δᵢ is kept with probability `density` and divided by it, else 0; then linear (Yu et al. 2024,
                 https://arxiv.org/abs/2311.03099, equation 3)
    dare_ties    the same before the signs and the mean of ties

The arithmetic is PEFT's (peft.utils.merge_utils), on whole weights. PEFT's add_weighted_adapter applies it to LoRA's factors A and B one
by one, whose product is then something else: its `linear` of two adapters contains A₁B₂, which neither model learnt.
Exception: the paper of ties takes the largest entries of a whole model; here, as in PEFT, they are those of each tensor.
"""

from __future__ import annotations

import functools
import hashlib

import torch

METHODS = {"linear": "task_arithmetic", "ties": "ties", "dare_linear": "dare_linear", "dare_ties": "dare_ties"}
"""{method: the function in peft.utils.merge_utils}"""


def combined(
    name: str,
    start: torch.Tensor,
    others: list[torch.Tensor],
    weights: list[float],
    method: str,
    density: float,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (θ, float64; the matrix of the δs' dot products).

    name: the tensor's, on which dare's draws depend. start, others: θ₀ and θᵢ, of one shape. θ₀ is rounded to the dtype of θᵢ before it is
    subtracted, and to the widest of them before changes are added: otherwise δᵢ would contain what rounding changed, in all weights. In
    float64 a single model with weight 1 comes out as it was, bit for bit.
    """
    from peft.utils import merge_utils

    changes = [other.double() - start.to(other.dtype).double() for other in others]
    start = start.to(functools.reduce(torch.promote_types, [other.dtype for other in others])).double()
    flat = torch.stack([change.flatten() for change in changes])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big") >> 1)
        how = {} if method == "linear" else {"density": density}
        change = getattr(merge_utils, METHODS[method])(changes, torch.tensor(weights, dtype=torch.float64), **how)
    return start + change, flat @ flat.T
