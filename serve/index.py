"""An encoder's vectors of passages, and the passages nearest to a question.

All vectors are compared with the question's: for some thousand passages, one matrix product takes less than the encoder does for the
question. Shapes: N passages, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.evals.measures.embedding import ALSO
from lib.generation import model_spec
from lib.generation.embedder import Embedder
from lib.models import locate, pooling
from lib.runtime import hardware
from serve.passages import Passage, split


def encoder(key: str, run: str) -> tuple[str, Embedder]:
    """Returns (name, encoder) of a run, model folder, package or hub model. Raises ValueError, beginning with `key`."""
    import torch
    from transformers.utils import logging

    found = model_spec.find(key, run, run, "float32", "encoder", also=ALSO)
    logging.disable_progress_bar()
    try:
        model = Embedder(str(locate.snapshot(found.base)), torch.float32, "cuda" if hardware.gpus() else "cpu")
    except ValueError as e:
        raise ValueError(f"{key}: {e}") from None
    return Path(run.rstrip("/")).name.removeprefix("package:"), model


@dataclass(frozen=True)
class Hit:
    passage: Passage
    score: float
    """Cosine similarity."""


class Index:
    """Thread-safe."""

    def __init__(self, name: str, model: Embedder, documents: list[str], tokens: int):
        """documents: files; tokens: most tokens of a passage, if the encoder can read as many. Raises ValueError, naming --documents."""
        self.name, self.model = name, model
        prompt = model.tokenizer(pooling.prompt(model.folder, "document"), add_special_tokens=False)["input_ids"]
        self.passages = split(documents, model.tokenizer, min(tokens, model.window - len(prompt)))
        self.vectors_ND = np.array(model.embed([p.embedded for p in self.passages], ["document"] * len(self.passages)))

    def search(self, question: str, count: int) -> list[Hit]:
        """Returns the `count` passages nearest to the question, nearest first. Raises ValueError if it is longer than the encoder reads."""
        try:
            [asked_D] = self.model.embed([question], ["query"])
        except ValueError as e:
            raise ValueError(f"question: {e}") from None
        scores_N = self.vectors_ND @ np.array(asked_D)
        return [Hit(self.passages[i], float(scores_N[i])) for i in np.argsort(-scores_N, kind="stable")[:count]]
