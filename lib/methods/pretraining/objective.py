"""What a pre-training objective defines: the model, the batch made from blocks of text, and the losses of a micro-batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lib.methods.pretraining.blocks import Block
from lib.methods.pretraining.config import PretrainConfig
from lib.models import masking

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""Label of a position that isn't predicted."""


@dataclass(frozen=True)
class Part:
    """A part of the loss: weight · total / count, with total and count summed over the whole optimizer step."""

    total: Tensor
    count: int
    weight: float = 1.0


class Objective(ABC):
    """The batch's "labels" are IGNORED where nothing is predicted. If there are several parts, the ratio of their counts is the same
    in each micro-batch."""

    def __init__(self, args: PretrainConfig, tokenizer: Any):
        """Raises ValueError, naming model.base, if the tokenizer lacks a token that the objective needs."""
        self.args, self.tokenizer = args, tokenizer
        self.regular = masking.text_tokens(tokenizer)

    @abstractmethod
    def model(self, folder: str, **how: Any) -> Any:
        """Loads the model from `folder`. how: arguments of from_pretrained."""

    @abstractmethod
    def collate(self, blocks: list[Block]) -> dict[str, Tensor]:
        """Returns the batch of B blocks."""

    @abstractmethod
    def losses(self, model: Any, batch: dict[str, Tensor]) -> tuple[dict[str, Part], dict[str, Part]]:
        """Returns (the parts of the loss by their names, further metrics); the first part's count is the number of labels."""

    def save(self, model: Any, folder: Path) -> None:
        """Writes the model that later stages load. The trainer has already written `model` to `folder`."""
        del model, folder

    def token(self, name: str) -> int:
        """Returns the id of a special token, such as "mask_token"."""
        found = getattr(self.tokenizer, f"{name}_id")
        if found is None:
            raise ValueError(
                f"model.base: its tokenizer has no {name}, which train.objective {self.args.objective} needs."
            )
        return int(found)


def tensor(rows: list[np.ndarray], fill: int = 0) -> Tensor:
    """Returns rows as (B, longest) int64, filled up on the right."""
    width = max(map(len, rows))
    return torch.from_numpy(np.stack([np.pad(r, (0, width - len(r)), constant_values=fill) for r in rows]))


def cross_entropy(logits: Tensor, labels: Tensor) -> Part:
    """Returns the sum of −log p of the labels, in float32. logits: (…, V); labels: (…)."""
    flat_NV, flat_N = logits.float().flatten(0, -2), labels.flatten()
    total = torch.nn.functional.cross_entropy(flat_NV, flat_N, ignore_index=IGNORED, reduction="sum")
    return Part(total, int((labels != IGNORED).sum()))


def accuracy(logits: Tensor, labels: Tensor) -> Part:
    """Returns how many labels have the highest logit."""
    return Part((logits.argmax(-1) == labels).sum(), int((labels != IGNORED).sum()))
