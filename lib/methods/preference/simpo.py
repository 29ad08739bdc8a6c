"""SimPO and CPO: preference losses on the policy's own log-probabilities, without a reference model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lib.methods.preference import losses
from lib.methods.preference.reference_free import Answers, ReferenceFreeConfig, ReferenceFreeTrainer

DEFAULTS = {"simpo": {"beta": 2.0, "cpo_alpha": 0.0}, "cpo": {"beta": 0.1, "cpo_alpha": 1.0}}
"""{loss_type: its paper's defaults}"""


@dataclass
class SimPOConfig(ReferenceFreeConfig):
    loss_type: Literal["simpo", "cpo"] = field(
        default="simpo",
        metadata={
            "help": "simpo: mean log-probabilities of a token and a margin. cpo: sums over the answer, no margin."
        },
    )
    beta: float | None = field(
        default=None, metadata={"help": "β: scale of the log-probabilities. None: 2.0 for simpo, 0.1 for cpo."}
    )
    simpo_gamma: float = field(
        default=1.0, metadata={"help": "γ: margin of simpo by which the chosen answer has to win, in units of reward."}
    )
    cpo_alpha: float | None = field(
        default=None,
        metadata={"help": "Weight of the chosen answers' NLL per token. None: 0 for simpo, 1 for cpo."},
    )

    def __post_init__(self):
        for key, value in DEFAULTS[self.loss_type].items():
            if getattr(self, key) is None:
                setattr(self, key, value)
        super().__post_init__()


class SimPOTrainer(ReferenceFreeTrainer):
    def __init__(self, args: SimPOConfig, **kwargs):
        super().__init__(args=args, **kwargs)
        self.nll_weight = args.cpo_alpha

    def pair_losses(self, answers: Answers):
        (kind,), smoothing = self.loss_types, self.label_smoothing
        if kind == "simpo":
            chosen_P, rejected_P = answers.chosen_mean_P, answers.rejected_mean_P
            loss_P = losses.simpo(chosen_P, rejected_P, self.beta, self.args.simpo_gamma, smoothing)
        else:
            chosen_P, rejected_P = answers.chosen_P, answers.rejected_P
            loss_P = losses.cpo(chosen_P, rejected_P, self.beta, smoothing)
        return loss_P, self.beta * chosen_P, self.beta * rejected_P
