"""ORPO: supervised fine-tuning on the chosen answers and a penalty on the odds of the rejected ones, without a reference model."""

from __future__ import annotations

from dataclasses import dataclass, field

from lib.methods.preference import losses
from lib.methods.preference.reference_free import Answers, ReferenceFreeConfig, ReferenceFreeTrainer


@dataclass
class ORPOConfig(ReferenceFreeConfig):
    loss_type: list[str] = field(default_factory=lambda: ["orpo"], init=False)
    label_smoothing: float = field(default=0.0, init=False)
    beta: float = field(default=0.1, metadata={"help": "λ: weight of the odds ratio beside the chosen answers' NLL."})


class ORPOTrainer(ReferenceFreeTrainer):
    def pair_losses(self, answers: Answers):
        """The reward is β log p, as in TRL, where log p is the mean log probability of an answer's tokens."""
        loss_P = self.beta * losses.odds_ratio(answers.chosen_mean_P, answers.rejected_mean_P)
        return loss_P, self.beta * answers.chosen_mean_P, self.beta * answers.rejected_mean_P
