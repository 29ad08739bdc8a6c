"""Prefix language modelling: predict the end of a text from its beginning, which is read in both directions.

L(θ) = − Σ_{t ≥ p} log p_θ(x_t | x_<t), where positions below p see each other
Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 3.2.1; as a decoder with this mask: Tay et al. 2022,
https://arxiv.org/abs/2205.05131, section 3.1.

p is drawn evenly from 1 to the text's length − 1, anew for each text of a block and in each epoch. Texts of a block don't see each
other. A text with a single token in a block isn't predicted. A generator that reads a prompt causally, such as vLLM, computes other
probabilities than those that were trained; so do this project's, and its tasks.

Shapes: B blocks of T tokens.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from lib.methods.pretraining.clm import Clm
from lib.methods.pretraining.objective import IGNORED, tensor


class PrefixLm(Clm):
    def collate(self, blocks):
        ids_BT, texts_BT = tensor([b["input_ids"] for b in blocks]), tensor([b["texts"] for b in blocks])
        prefix_BT = tensor([prefixes(b["texts"], b["draws"]) for b in blocks])
        return {
            "input_ids": ids_BT,
            "attention_mask": torch.ones_like(ids_BT),
            "texts": texts_BT,
            "prefix": prefix_BT,
            "labels": ids_BT.masked_fill(prefix_BT.bool(), IGNORED),
        }


def prefixes(texts_T: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """Returns which positions are in the prefix of their text, (T,) int64 of 0 and 1."""
    bounds, out = starts(texts_T), np.zeros(len(texts_T), dtype=np.int64)
    for start, end in itertools.pairwise(bounds):
        out[start : start + draws.integers(1, max(2, end - start))] = 1
    return out


def starts(texts_T: np.ndarray) -> np.ndarray:
    """Returns the first position of each text in a block, and T."""
    changes = np.flatnonzero(np.diff(texts_T)) + 1
    return np.concatenate([[0], changes, [len(texts_T)]])
