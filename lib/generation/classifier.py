"""The class or the score that a classifier gives to a text or a pair of texts.

Shapes: B rows of T tokens (right-padded, since encoders count positions from the left), C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from lib.generation.batching import batches
from lib.models import text_pairs
from lib.models.window import positions, refuse


class Classifier:
    """The model for sequence classification in folder `folder`."""

    def __init__(self, folder: str, dtype, device: str, batch_rows: int = 64, batch_tokens: int = 4096):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # masked, so any token works
        for head in self.model.children():  # bfloat16 rounds a score of 3 to steps of 0.016, enough to make ties
            if head is not self.model.base_model:
                head.float().register_forward_pre_hook(lambda _, given: (given[0].float(), *given[1:]))
        self.device, self.batch_rows, self.batch_tokens = device, batch_rows, batch_tokens

    def classify(self, texts: Sequence[str], seconds: Sequence[str | None]) -> list[str]:
        """Returns the name of the most likely class of each text, or of each pair of texts where the second isn't None. Raises ValueError
        if one is longer than the model reads."""
        return [
            self.model.config.id2label[max(range(len(row)), key=row.__getitem__)]
            for row in self._logits(texts, seconds)
        ]

    def rate(self, texts: Sequence[str], seconds: Sequence[str | None]) -> list[float]:
        """Returns the score of each, as classify() takes them."""
        return [score for (score,) in self._logits(texts, seconds)]

    def _logits(self, texts: Sequence[str], seconds: Sequence[str | None]) -> list[list[float]]:
        """Returns C numbers per text."""
        import torch

        read = [text_pairs.tokens(self.tokenizer, *pair) for pair in zip(texts, seconds, strict=True)]
        lengths = [len(row["input_ids"]) for row in read]
        refuse("texts", lengths, positions(self.model.config), "Shorten them.")
        found: list[list[float]] = [[]] * len(read)
        with torch.inference_mode():
            for rows in batches(range(len(read)), lengths, self.batch_rows, self.batch_tokens):
                batch = self.tokenizer.pad([read[i] for i in rows], padding_side="right", return_tensors="pt")
                logits_BC = self.model(**batch.to(self.device)).logits.float()
                for i, row in zip(rows, logits_BC.tolist(), strict=True):
                    found[i] = row
        return found
