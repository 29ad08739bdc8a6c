"""Causal language modelling: predict each token from the tokens before it.

L(θ) = − Σ_t log p_θ(x_t | x_<t)        Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", eq. 1

The first token of a block is not predicted. With `train.separate_texts`, the first token of each text isn't either, and a text doesn't
see the texts before it in its block; otherwise it does, as in GPT-2 and GPT-3.

Shapes: B blocks of T tokens, V vocabulary.
"""

from __future__ import annotations

import torch

from lib.methods.pretraining import attention
from lib.methods.pretraining.objective import IGNORED, Objective, accuracy, cross_entropy, tensor


class Clm(Objective):
    def model(self, folder, **how):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, **how)

    def collate(self, blocks):
        ids_BT, texts_BT = tensor([b["input_ids"] for b in blocks]), tensor([b["texts"] for b in blocks])
        labels_BT = ids_BT.clone()
        labels_BT[:, 0] = IGNORED
        batch = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "labels": labels_BT}
        if self.args.separate_texts:
            labels_BT[:, 1:][texts_BT[:, 1:] != texts_BT[:, :-1]] = IGNORED
            batch |= {"texts": texts_BT, "prefix": torch.zeros_like(ids_BT)}
        return batch

    def losses(self, model, batch):
        where = {"attention_mask": batch["attention_mask"]}
        if "texts" in batch:
            where = attention.packed(batch["texts"], batch["prefix"].bool())
        logits_BTV = model(input_ids=batch["input_ids"], use_cache=False, **where).logits[:, :-1]
        labels_BT = batch["labels"][:, 1:]
        return {"nll": cross_entropy(logits_BTV, labels_BT)}, {"mean_token_accuracy": accuracy(logits_BTV, labels_BT)}
