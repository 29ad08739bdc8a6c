"""Masked language modelling: predict the tokens at a chosen share of positions, most of which are replaced by [MASK].

L(θ) = − Σ_{t ∈ M} log p_θ(x_t | x̃)        Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.1

M: `train.mlm_probability` of the block's positions, none of them a special token. Of these, 80% become [MASK], 10% a random token, and 10%
stay. With `train.whole_words`, all tokens of a word are chosen together (BERT's whole-word masking). Each epoch chooses anew (dynamic
masking, Liu et al. 2019, https://arxiv.org/abs/1907.11692, section 4.1).

A block is [CLS] text [SEP]. Shapes: B blocks, T tokens with both, N chosen positions.
"""

from __future__ import annotations

import numpy as np
import torch

from lib.methods.pretraining.objective import IGNORED, Objective, accuracy, cross_entropy, tensor
from lib.models import masking


class Mlm(Objective):
    def __init__(self, args, tokenizer):
        super().__init__(args, tokenizer)
        self.cls, self.sep, self.mask = (self.token(f"{name}_token") for name in ("cls", "sep", "mask"))

    def model(self, folder, **how):
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM.from_pretrained(folder, **how)

    def collate(self, blocks):
        rows = []
        for b in blocks:
            ids_T = np.concatenate([[self.cls], b["input_ids"], [self.sep]])
            rows.append(self.masked(ids_T, np.concatenate([[-1], b["words"], [-1]]), b["draws"]))
        return self.batch(rows)

    def masked(self, ids_T, words_T, draws):
        """Returns (tokens with masks, labels), (T,) each. words_T: the number of each token's word."""
        free_T = np.isin(ids_T, self.regular)
        chosen_T = masking.choose(free_T, self.args.mlm_probability, draws, words_T if self.args.whole_words else None)
        return self.replaced(ids_T, chosen_T, draws), np.where(chosen_T, ids_T, IGNORED)

    def replaced(self, ids_T, chosen_T, draws):
        return masking.replace(ids_T, chosen_T, self.mask, self.regular, draws)

    def batch(self, rows):
        ids_BT, labels_BT = (tensor(list(column)) for column in zip(*rows, strict=True))
        return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "labels": labels_BT}

    def losses(self, model, batch):
        logits_BTV = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return self.of_masked(logits_BTV, batch["labels"])

    def of_masked(self, logits_BTV, labels_BT):
        at_BT = labels_BT != IGNORED
        logits_NV, targets_N = logits_BTV[at_BT], labels_BT[at_BT]
        return {"nll": cross_entropy(logits_NV, targets_N)}, {"mean_token_accuracy": accuracy(logits_NV, targets_N)}
