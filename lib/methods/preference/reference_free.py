"""Preference training without a reference model: rows, tokens and truncation as in DPO, one forward pass, a loss of the policy alone.

TRL's experimental ORPOTrainer and CPOTrainer prepare rows differently: they tokenize prompt and answer separately, add BOS and EOS to a
chat template that has its own, truncate prompts first, learn the prompts in ORPO's NLL term, and average that term per micro-batch.
Here rows are prepared as for DPO, only answers are learnt, and the NLL term is a mean over the chosen tokens of the whole step.

Shapes: P pairs, whose 2P answers are rows of T tokens, the P chosen ones first.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trl.trainer.dpo_config import DPOConfig  # by its module, where lib/config/trl_fields.py finds its fields

from lib.methods.heldout import counts, log_means
from lib.methods.preference.dpo import WholeStepTrainer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class ReferenceFreeConfig(DPOConfig):
    """Fields with init=False have no meaning without a reference model and can't be set in `train`."""

    precompute_ref_log_probs: bool = field(default=True, init=False)  # so that no reference is loaded
    precompute_ref_batch_size: int | None = field(default=None, init=False)
    loss_weights: list[float] | None = field(default=None, init=False)
    ld_alpha: float | None = field(default=None, init=False)
    f_divergence_type: str = field(default="reverse_kl", init=False)
    f_alpha_divergence_coef: float = field(default=0.5, init=False)
    use_weighting: bool = field(default=False, init=False)
    discopop_tau: float = field(default=0.05, init=False)
    sync_ref_model: bool = field(default=False, init=False)
    ref_model_mixup_alpha: float = field(default=0.6, init=False)
    ref_model_sync_steps: int = field(default=512, init=False)


@dataclass(frozen=True)
class Answers:
    """The policy's log probabilities of a batch's answers."""

    chosen_P: Tensor
    """log π(y⁺|x), summed over tokens."""
    rejected_P: Tensor
    chosen_mean_P: Tensor
    """log π(y⁺|x), averaged over the tokens of each answer."""
    rejected_mean_P: Tensor


class ReferenceFreeTrainer(WholeStepTrainer):
    """A subclass defines the loss of each pair, and `nll_weight`, the weight of the mean −log π per chosen token of the step."""

    nll_weight: float = 1.0

    @abstractmethod
    def pair_losses(self, answers: Answers) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (loss, implicit reward of the chosen answer, of the rejected answer) for each pair, (P,) each."""

    @property
    def by_chosen_token(self) -> bool:
        return self.nll_weight > 0

    def _precompute_ref_logps(self, dataset, name: str, batch_size: int):
        return dataset  # DPOTrainer would read all rows with the reference

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        import torch

        mask = inputs["completion_mask"]
        mask_T, at = mask[:, 1:], {k: inputs[k] for k in ("input_ids", "attention_mask")}
        if self.aux_loss_enabled:
            at["output_router_logits"] = True
        labels = inputs["input_ids"].masked_fill(mask == 0, -100)
        outputs = model(**at, labels=labels, use_cache=False, fused_lm_head=True)
        token_logps = outputs.log_probs[:, -mask_T.size(1) :]  # (2P, T − 1), 0 where no answer is
        logps, tokens = token_logps.sum(1), mask_T.sum(1)
        answers = Answers(*logps.chunk(2), *(logps / tokens.clamp(min=1)).chunk(2))
        pair_P, chosen_reward_P, rejected_reward_P = self.pair_losses(answers)
        loss, here = pair_P.mean(), counts(inputs)
        per_pair = self.chosen_per_pair or here["chosen"] / here["pairs"] or 1.0
        if self.nll_weight:
            loss = loss - self.nll_weight * answers.chosen_P.mean() / per_pair
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        with torch.no_grad():
            right = outputs.is_top1[:, -mask_T.size(1) :] & mask_T.bool()
            sums = {
                "pair_loss": pair_P.sum(),
                "rewards/chosen": chosen_reward_P.sum(),
                "rewards/rejected": rejected_reward_P.sum(),
                "rewards/accuracies": (chosen_reward_P > rejected_reward_P).sum(),
                "rewards/margins": (chosen_reward_P - rejected_reward_P).sum(),
                "logps/chosen": answers.chosen_P.sum(),
                "logps/rejected": answers.rejected_P.sum(),
                "nll_loss": -answers.chosen_P.sum(),
                "mean_token_accuracy": right.chunk(2)[0].sum(),
                "entropy": (outputs.entropy[:, -mask_T.size(1) :] * mask_T).sum(),
            }
        log_means(self, sums, inputs)
        return (loss, outputs) if return_outputs else loss
