"""Computes the vectors of texts with an encoder, or with a decoder as one: its last layer, pooled by the model's sentence-transformers
files (without such files, the mean over a text's tokens), scaled to length 1.

Sentence encoders such as all-MiniLM-L6-v2 are trained this way (Reimers & Gurevych 2019, https://arxiv.org/abs/1908.10084).
Shapes: B texts, T tokens (right-padded, since encoders count positions from the left), D dimensions.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from lib.generation.batching import batches
from lib.models import pooling

AT_ONCE, TOKENS = 32, 4096
"""Most texts, and most tokens including padding, per forward pass."""


class Embedder:
    """The model in `folder`; thread-safe, one request at a time. Raises ValueError if its files describe another kind of embedding."""

    def __init__(self, folder: str, dtype, device: str):
        from transformers import AutoModel, AutoTokenizer

        self.pooling = pooling.of(folder) or "mean"
        self.model = AutoModel.from_pretrained(folder, dtype=dtype).to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # masked, so any token works
        # RoBERTa and MPNet have two positions more than they accept tokens; their tokenizers have the true limit.
        self.window = min(self.model.config.max_position_embeddings, self.tokenizer.model_max_length)
        self.folder, self.device, self.lock = folder, device, threading.Lock()

    def read(self, given) -> list[list[int]]:
        """Returns the tokens of each text of a request's `input`: a text, texts, tokens, or lists of tokens. Raises ValueError."""
        single = isinstance(given, str) or (given and isinstance(given, list) and isinstance(given[0], int))
        texts = [given] if single else given
        if not isinstance(texts, list) or not texts:
            raise ValueError("input: must be a text, or a list of texts.")
        ids = [self.tokenizer(t)["input_ids"] if isinstance(t, str) else t for t in texts]
        size = self.model.config.vocab_size
        for i, row in enumerate(ids):
            if not isinstance(row, list) or not all(type(t) is int and 0 <= t < size for t in row):
                raise ValueError(f"input: number {i} is neither a text nor a list of tokens below {size}.")
            if not row or texts[i] == "":
                raise ValueError(f"input: number {i} is empty.")
            if len(row) > self.window:
                raise ValueError(f"input: number {i} has {len(row)} tokens, and the model reads at most {self.window}.")
        return ids

    def vectors(self, ids: list[list[int]], width: int | None = None) -> list[list[float]]:
        """Returns one vector (D,) of length 1 per text, or of its first `width` numbers. The other texts in its batch change it only by
        rounding."""
        import torch

        found: list[list[float]] = [[]] * len(ids)
        with self.lock, torch.inference_mode():
            for rows in batches(range(len(ids)), [len(row) for row in ids], AT_ONCE, TOKENS):
                batch = self.tokenizer.pad(
                    {"input_ids": [ids[i] for i in rows]}, padding_side="right", return_tensors="pt"
                )
                batch = batch.to(self.device)
                states_BTD = self.model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
                ).last_hidden_state
                pooled_BD = self._pooled(states_BTD.float(), batch["attention_mask"])[:, :width]
                for i, vector in zip(rows, torch.nn.functional.normalize(pooled_BD).tolist(), strict=True):
                    found[i] = vector
        return found

    def _pooled(self, states_BTD, mask_BT):
        """Returns (B, D)."""
        if self.pooling == "cls":
            return states_BTD[:, 0]
        if self.pooling == "last":
            return states_BTD[range(len(states_BTD)), mask_BT.sum(1) - 1]
        return (states_BTD * mask_BT[..., None]).sum(1) / mask_BT.sum(1, keepdim=True)

    def embed(self, texts: Sequence[str], roles: Sequence[str] | None = None) -> list[tuple[float, ...]]:
        """Returns the vector of each text, behind the prompt of its role (lib/models/pooling.py). Raises ValueError if one is longer than the
        model reads."""
        roles = roles or [""] * len(texts)
        prompts = {role: pooling.prompt(self.folder, role) for role in set(roles)}
        given = [prompts[role] + text for text, role in zip(texts, roles, strict=True)]
        return [tuple(vector) for vector in self.vectors(self.read(given))]
