"""The `train:` section of jobs/prune.py: distillation's, and how the base is pruned (lib/methods/pruning/methods.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lib.methods.distillation.trainer import DistillConfig


@dataclass
class PruneConfig(DistillConfig):
    method: Literal["magnitude", "wanda", "width", "depth"] = field(
        default="width", metadata={"help": "What is taken away: lib/methods/pruning/methods.py."}
    )
    sparsity: float | None = field(
        default=None,
        metadata={"help": "magnitude, wanda: share of the weights of every linear layer that become 0, and stay 0."},
    )
    pattern: str | None = field(
        default=None,
        metadata={"help": "magnitude, wanda: instead of sparsity N:M, such as 2:4: of M inputs in a row N stay."},
    )
    keep_channels: int | None = field(
        default=None,
        metadata={"help": "width: MLP channels that stay in every layer (the config's intermediate_size)."},
    )
    keep_kv_heads: int | None = field(
        default=None,
        metadata={"help": "width: key-value heads that stay in every layer, with the query heads that share them."},
    )
    keep_layers: int | None = field(
        default=None, metadata={"help": "depth: layers that stay, those that change their input's direction most."}
    )
    calibration_rows: int = field(
        default=128, metadata={"help": "Training rows on which wanda, width and depth see what counts."}
    )
