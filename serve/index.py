"""An encoder's vectors of passages, and the passages nearest to a question.

All vectors are compared with the question's: for some thousand passages, one matrix product takes less than the encoder does for the
question. Shapes: N passages, D dimensions.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.passages import Passage, split


def encoder(key: str, run: str) -> tuple[str, Any]:
    """Returns (name, sentence_transformers.SentenceTransformer) of a run, model folder, package or hub model.

    A model without sentence-transformers files gets the mean of its last layer. Raises ValueError, beginning with `key`.
    """
    from lib.generation import model_spec
    from lib.models import locate
    from lib.runtime import hardware

    found = model_spec.find(key, run, run, "float32", "encoder", also=("masked_lm", "discriminator", "causal_lm"))
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    device = "cuda" if hardware.gpus() else "cpu"
    folder = str(locate.snapshot(found.base))
    model = SentenceTransformer(folder, device=device, local_files_only=True)
    return Path(run.rstrip("/")).name.removeprefix("package:"), model


@dataclass(frozen=True)
class Hit:
    passage: Passage
    score: float
    """Cosine similarity."""


class Index:
    """Thread-safe. model: a SentenceTransformer."""

    def __init__(self, name: str, model: Any, documents: list[str], tokens: int):
        """documents: files; tokens: most tokens of a passage, if the encoder can read as many. Raises ValueError, naming --documents."""
        self.name, self.model, self.lock = name, model, threading.Lock()
        self.passages = split(documents, model.tokenizer, min(tokens, model.max_seq_length or tokens))
        texts = [p.embedded for p in self.passages]
        shown = sys.stderr.isatty()
        self.vectors_ND = model.encode_document(texts, normalize_embeddings=True, show_progress_bar=shown)

    def search(self, question: str, count: int) -> list[Hit]:
        """Returns the `count` passages nearest to the question, nearest first."""
        import numpy as np

        with self.lock:
            asked_D = self.model.encode_query(question, normalize_embeddings=True, show_progress_bar=False)
        scores_N = self.vectors_ND @ asked_D
        return [Hit(self.passages[i], float(scores_N[i])) for i in np.argsort(-scores_N, kind="stable")[:count]]
