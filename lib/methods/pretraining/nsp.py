"""Next-sentence prediction: masked language modelling on two segments, and whether the second one follows the first.

L(θ) = L_MLM(θ) − log p_θ(y | x̃)        Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.1, task 2

A block is cut at a position between a quarter and three quarters of it. y = 0: its two parts, in their order. y = 1, in half of the
cases: the second part is that of another block (`train.next_segment: random`), or the parts are swapped (`swapped`: sentence-order
prediction, Lan et al. 2020, https://arxiv.org/abs/1909.11942, section 3.1). BERT's segments are whole sentences that end at different lengths; these fill each block
exactly, so nothing is padded.

A block is [CLS] first [SEP] second [SEP]. Shapes: B blocks, T tokens with the special ones.
"""

from __future__ import annotations

import numpy as np
import torch

from lib.methods.pretraining.mlm import Mlm
from lib.methods.pretraining.objective import accuracy, cross_entropy, tensor


class Nsp(Mlm):
    def model(self, folder, **how):
        from transformers import AutoModelForPreTraining

        made = AutoModelForPreTraining.from_pretrained(folder, **how)
        if not hasattr(getattr(made, "cls", None), "seq_relationship"):
            raise ValueError(
                f"model.base: {type(made).__name__} has no head for train.objective nsp, only BERT has. Use objective: mlm."
            )
        return made

    def collate(self, blocks):
        rows, kinds, following = [], [], []
        for block in blocks:
            first, second, words, wrong = pair(block, self.args.next_segment)
            ids_T = np.concatenate([[self.cls], first, [self.sep], second, [self.sep]])
            words = np.concatenate([[-1], words[: len(first)], [-1], words[len(first) :], [-1]])
            rows.append(self.masked(ids_T, words, block["draws"]))
            kinds.append(np.repeat([0, 1], [len(first) + 2, len(second) + 1]))
            following.append(wrong)
        return self.batch(rows) | {"token_type_ids": tensor(kinds), "wrong": torch.tensor(following, dtype=torch.int64)}

    def losses(self, model, batch):
        out = model(**{k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")})
        parts, metrics = self.of_masked(out.prediction_logits, batch["labels"])
        parts["next_nll"] = cross_entropy(out.seq_relationship_logits, batch["wrong"])
        return parts, metrics | {"next_accuracy": accuracy(out.seq_relationship_logits, batch["wrong"])}


def pair(block, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Returns (first segment, second segment, the word of each of their tokens, y)."""
    ids_T, words_T, draws = block["input_ids"], block["words"], block["draws"]
    length = len(ids_T)
    at = int(draws.integers(max(1, length // 4), max(2, length * 3 // 4 + 1)))
    wrong = int(draws.random() < 0.5)
    if not wrong:
        return ids_T[:at], ids_T[at:], words_T, 0
    if kind == "swapped":
        return ids_T[at:], ids_T[:at], np.roll(words_T, -at), 1
    # Words of the other block get numbers that the first segment doesn't use.
    words = np.concatenate([words_T[:at], block["other_words"][at:] + words_T.max() + 1])
    return ids_T[:at], block["other"][at:], words, 1
