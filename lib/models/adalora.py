"""AdaLoRA: moves rank between the adapted weights while they train. Zhang et al. 2023, https://arxiv.org/abs/2303.10512

Each adapted weight is W + P Λ Q with Λ diagonal (PEFT's lora_B, lora_E and lora_A), and the loss is

    L = C + γ Σ_k R(P_k, Q_k)      R(P, Q) = ‖PᵀP − I‖² + ‖QQᵀ − I‖²      (eq. 4; γ: model.peft.orth_reg_weight)

PEFT adds a regulariser only to an output's `loss`, which TRL's trainers work out themselves, so that it would depend on the stage, be part of
the held-out loss, and be counted once for each micro-batch. (It is the mean of the norms without the squares, as in the authors' code.) Here
the gradient of eq. 4 is added once for each optimizer step, after C's is clipped; logged losses are C. As in algorithm 1 of the paper, the
importance of a weight is worked out from the gradient of L, after the optimizer's step.

The state of the allocation is kept in the optimizer's state, so that checkpoints hold it. Those hold every triplet, also ones that
are masked now and may come back; adapter/ holds only those that were kept.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lib.models import adapter_limits
from lib.runtime.failure import StopTraining

SMOOTHED = ("exp_avg_ipt", "exp_avg_unc")
"""The moving averages of a weight's importance and of its uncertainty (eq. 9 and 10), by their names in PEFT."""
KEPT = "kept"
"""Which triplets of a weight were kept when ranks were last allocated: 1 or 0, as the optimizer's state holds numbers of a weight's type."""


def add_orthogonality_gradient(p, q, weight: float) -> None:
    """Adds the gradient of weight · R(P, Q) to those of `p` (out, r) and `q` (r, in)."""
    import torch

    with torch.no_grad():
        one = torch.eye(q.shape[0], dtype=q.dtype, device=q.device)
        p.grad.add_(p @ (p.t() @ p - one), alpha=4 * weight)
        q.grad.add_((q @ q.t() - one) @ q, alpha=4 * weight)


class AdaLora(TrainerCallback):
    """For every rank. They allocate alike, since their gradients are the same. model: a PeftModel."""

    def __init__(self, model: Any):
        self.tuner = model.base_model
        self.name = self.tuner.trainable_adapter_name
        self.config = self.tuner.peft_config[self.name]
        self.tuner.forward = self.tuner.model.forward  # without PEFT's regulariser
        self.pattern: dict[str, list[bool]] | None = None
        """Kept out of the config until training ends: with it PEFT would save only the triplets that are kept."""

    def weights(self) -> dict[str, Any]:
        return {n: p for n, p in self.tuner.model.named_parameters() if "lora_" in n and f".{self.name}" in n}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Restores the allocation's state. Raises StopTraining if the job has too few steps for the schedule."""
        import torch

        if problem := adapter_limits.schedule(self.config, state.max_steps):
            raise StopTraining(problem)
        self.config.total_step = state.max_steps
        allocator, pattern = self.tuner.rankallocator, {}
        for name, p in self.weights().items():
            found = optimizer.state.get(p, {})
            if SMOOTHED[0] in found:
                allocator.ipt[name] = torch.zeros_like(p)
                for key in SMOOTHED:
                    getattr(allocator, key)[name] = found[key]
            if KEPT in found:
                pattern[name] = found[KEPT].bool().tolist()
        self.pattern = pattern or None
        if state.global_step >= state.max_steps:  # only the export is left
            self.config.rank_pattern = self.pattern

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        weights = self.weights()
        for name, q in weights.items():
            if f"lora_A.{self.name}" in name:
                add_orthogonality_gradient(weights[name.replace("lora_A", "lora_B")], q, self.config.orth_reg_weight)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Allocates ranks after step t, counted from 1 as in the paper: PEFT's last allocation is at step total_step − tfinal."""
        import torch

        if getattr(optimizer, "step_was_skipped", False):  # fp16's gradients overflowed and say nothing
            for p in self.weights().values():
                p.grad.zero_()
        self.config.rank_pattern = self.pattern
        self.tuner.update_and_allocate(state.global_step + 1)
        self.pattern, self.config.rank_pattern = self.config.rank_pattern, None
        allocator = self.tuner.rankallocator
        for name, p in self.weights().items():
            kept = optimizer.state[p]
            for key in SMOOTHED:
                kept.pop(key, None)
                if name in getattr(allocator, key):  # empty after the last allocation
                    kept[key] = getattr(allocator, key)[name]
            if self.pattern and name in self.pattern:
                kept[KEPT] = torch.tensor(self.pattern[name], dtype=p.dtype, device=p.device)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.config.rank_pattern = self.pattern
