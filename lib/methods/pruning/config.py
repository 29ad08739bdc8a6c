"""The `train:` section of jobs/prune.py: the keys of distillation, and how the base is pruned (lib/methods/pruning/methods.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lib.methods.distillation.trainer import DistillConfig


@dataclass
class PruneConfig(DistillConfig):
    method: Literal["magnitude", "wanda", "width", "depth"] = field(
        default="width",
        metadata={
            "help": "How the base is pruned: magnitude and wanda set weights to 0; width and depth remove channels, heads or layers."
        },
    )
    sparsity: float | None = field(
        default=None,
        metadata={"help": "magnitude, wanda: share of every linear layer's weights that become 0 and stay 0."},
    )
    pattern: str | None = field(
        default=None,
        metadata={
            "help": "magnitude, wanda: N:M, such as 2:4, instead of sparsity: of every M consecutive inputs N stay."
        },
    )
    keep_channels: int | None = field(
        default=None,
        metadata={
            "help": "width: number of MLP channels kept in every layer (intermediate_size in the model's config)."
        },
    )
    keep_kv_heads: int | None = field(
        default=None,
        metadata={
            "help": "width: number of key-value heads kept in every layer, with the query heads that share them."
        },
    )
    keep_layers: int | None = field(
        default=None, metadata={"help": "depth: number of layers kept: those that change their input's direction most."}
    )
    calibration_rows: int = field(
        default=128, metadata={"help": "Number of training rows on which wanda, width and depth measure importance."}
    )
