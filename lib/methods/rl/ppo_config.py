"""Settings of PPO: the keys of `train:` in jobs/ppo.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments


@dataclass
class PPOConfig(TrainingArguments):
    """Fields with init=False can't be set in `train`. Names are TRL's, where it has or had the setting."""

    remove_unused_columns: bool = field(default=False, init=False)
    label_smoothing_factor: float = field(default=0.0, init=False)
    learning_rate: float = field(default=3e-6, metadata={"help": "The initial learning rate for AdamW."})
    adam_epsilon: float = field(default=1e-5, metadata={"help": "ε of AdamW (detail 3 of the 37)."})
    model_init_kwargs: dict | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained, under their own names."}
    )
    max_completion_length: int = field(default=256, metadata={"help": "Longest answer, in tokens."})
    temperature: float = field(
        default=1.0, metadata={"help": "Of sampling. Probabilities in the loss are divided by it too."}
    )
    num_iterations: int = field(
        default=4, metadata={"help": "Updates on the answers of each rollout (num_ppo_epochs of TRL)."}
    )
    value: str | None = field(
        default=None,
        metadata={
            "help": "A reward run whose model becomes the value model. None: a linear layer on the policy's last hidden states."
        },
    )
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the value model's own weights. None: learning_rate."}
    )
    kl_coef: float = field(default=0.05, metadata={"help": "β: weight of the KL to the reference in a token's reward."})
    kl_estimator: Literal["k1", "k2", "k3"] = field(
        default="k1", metadata={"help": "Estimator of the KL (lib/methods/rl/kl.py)."}
    )
    kl_target: float | None = field(
        default=None,
        metadata={"help": "KL in nats an answer towards which β is adapted after each rollout. None: β is fixed."},
    )
    kl_horizon: float = field(default=10000.0, metadata={"help": "Answers over which β adapts by at most a fifth."})
    gamma: float = field(default=1.0, metadata={"help": "γ: discount of later rewards."})
    lam: float = field(default=0.95, metadata={"help": "λ of generalised advantage estimation."})
    cliprange: float = field(default=0.2, metadata={"help": "ε: bound of the probability ratio."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Bound of the values' change in an update."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    whiten_rewards: bool = field(
        default=False, metadata={"help": "Divide the rewards of a rollout's tokens by their standard deviation."}
    )
    reward_clip: float | None = field(
        default=None,
        metadata={"help": "Limit each reward to ± this number before it is multiplied by its weight. None: no limit."},
    )
    kl_limit: float | None = field(
        default=None,
        metadata={
            "help": "KL to the reference, in nats an answer, above which the run's page warns. None: twice kl_target."
        },
    )
