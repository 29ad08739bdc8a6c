"""The language model head on a CPU: projects only positions that have a label, and only once.

TRL projects hidden states (N, H) onto the vocabulary (N, V). With Triton it projects only the N positions with a label; otherwise
all positions, because a compiler for fixed shapes would recompile for every N (trl/trainer/utils.py, add_fused_lm_head). PyTorch
on a CPU has no such compiler, and prompts are two thirds of a typical row.

TRL computes the projection in tiles, and twice (its backward recomputes it from the hidden states), with about ten passes over each
(N, V) tile. If the head's weights are frozen, once is enough: for log p(y | h) = z_y − log Σ exp z with z = W h, the gradient with
respect to h is Σ_v (1[v = y] − p_v) W_v. The forward computes it while it has p, and it is only as large as h. The result is the
same up to rounding.

Shapes: N positions with a label, n of them in one tile, H channels, V tokens of the vocabulary.
"""

from __future__ import annotations

from functools import cache

ROWS = 256
"""Positions per tile; their logits (ROWS, V) are what takes memory."""


def project_labelled_only() -> None:
    """Patches TRL for the trainers of this process. tests/models/test_lm_head.py fails if a new version of TRL no longer uses these functions."""
    from trl.trainer import utils

    utils._use_triton = lambda device: device.type in ("cpu", "cuda", "xpu")
    if not hasattr(utils._ChunkedLogProbFunction, "tiled"):
        utils._ChunkedLogProbFunction = _head(utils._ChunkedLogProbFunction)


def _head(theirs):
    import torch

    class Head:
        """Replaces TRL's autograd function, and falls back to it where the single pass isn't possible."""

        tiled = theirs

        @staticmethod
        def apply(hidden, weight, bias, targets, temperature, chunk, softcap, scale, outputs):
            frozen = not (weight.requires_grad and torch.is_grad_enabled())
            plain = bias is None and temperature == 1 and softcap is None and scale == 1
            known = "log_sum_sq_probs" not in outputs
            if not (frozen and plain and known and hidden.device.type == "cpu" and len(hidden)):
                return theirs.apply(hidden, weight, bias, targets, temperature, chunk, softcap, scale, outputs)
            log_probs, entropy, mean_logits, is_top1 = _once()(hidden, weight, targets, outputs)
            return log_probs, entropy, None, mean_logits, is_top1

    return Head


@cache
def _once():
    import torch
    from torch.autograd import Function

    class Once(Function):
        """hidden (N, H), weight (V, H), targets (N,) → log p of the targets, entropy, mean logit, whether the target has the highest
        logit; each (N,). The last three are None unless named in `outputs`. Only log p has a gradient, and only with respect to hidden."""

        @staticmethod
        def forward(ctx, hidden_NH, weight_VH, targets_N, outputs):
            kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden_NH.dtype
            weight_VH, wanted = weight_VH.to(kind), ctx.needs_input_grad[0]
            log_probs_N = torch.empty(len(hidden_NH))
            entropy_N = torch.empty_like(log_probs_N) if "entropy" in outputs else None
            mean_N = torch.empty_like(log_probs_N) if "mean_logits" in outputs else None
            top_N = torch.empty(len(hidden_NH), dtype=torch.bool) if "is_top1" in outputs else None
            slope_NH = torch.empty(hidden_NH.shape) if wanted else None
            with torch.autocast("cpu", enabled=False):
                for at in range(0, len(hidden_NH), ROWS):
                    rows, target = slice(at, at + ROWS), targets_N[at : at + ROWS, None]
                    z_nV = hidden_NH[rows].to(kind) @ weight_VH.t()
                    if "mean_logits" in outputs:
                        mean_N[rows] = z_nV.mean(-1, dtype=torch.float32)
                    if "is_top1" in outputs:
                        top_N[rows] = z_nV.max(-1).indices == target[:, 0]
                    logp_nV = z_nV.log_softmax(-1, dtype=torch.float32)
                    log_probs_N[rows] = logp_nV.gather(1, target)[:, 0]
                    if not wanted and "entropy" not in outputs:
                        continue
                    p_nV = logp_nV.exp()
                    if "entropy" in outputs:
                        entropy_N[rows] = -logp_nV.mul_(p_nV).sum(-1)
                    if wanted:  # computes 1 − p of the target in float32, since it may be tiny
                        d_nV = p_nV.neg_().scatter_add_(1, target, torch.ones(target.shape))
                        slope_NH[rows] = (d_nV.to(kind) @ weight_VH).float()
            ctx.save_for_backward(slope_NH)
            ctx.kind = hidden_NH.dtype
            extra = entropy_N, mean_N, top_N
            ctx.mark_non_differentiable(*(x for x in extra if x is not None))
            return log_probs_N, *extra

        @staticmethod
        def backward(ctx, grad_N, *_):
            (slope_NH,) = ctx.saved_tensors
            return (grad_N[:, None] * slope_NH).to(ctx.kind), None, None, None

    return Once.apply
