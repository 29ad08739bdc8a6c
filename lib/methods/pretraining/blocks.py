"""Texts as blocks of equal length, and the random numbers that an objective draws for each.

The tokens of all texts are joined, each text followed by its end token, and cut into blocks (GPT-2; FULL-SENTENCES in RoBERTa, Liu et
al. 2019, https://arxiv.org/abs/1907.11692, section 4.2). The rest, which fills no block, is left out and counted.

What an objective draws for a block depends on (seed, epoch, block) alone. It is therefore the same on any number of workers, for any
micro-batch, and after a resume. transformers' collators draw from a generator that runs one batch ahead of the checkpoint: a resumed
run gets other masks.

Shapes: N blocks, T tokens of a block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypedDict

import numpy as np
from torch.utils.data import Dataset


class Block(TypedDict):
    input_ids: np.ndarray
    """(T,) int64"""
    texts: np.ndarray
    """(T,) int64: number of the text that each token belongs to."""
    words: np.ndarray
    """(T,) int64: number of the word that each token belongs to, as the tokenizer splits texts into words."""
    other: np.ndarray
    """(T,) int64: the tokens of another block, drawn anew in each epoch. The block itself if there is only one."""
    other_words: np.ndarray
    draws: np.random.Generator
    """For this block in this epoch."""


class Blocks(Dataset):
    """N blocks. Index epoch · N + n is block n in that epoch (lib/stage/epochs.py counts so)."""

    by_epoch = True

    def __init__(self, texts: Iterable[tuple[list[int], list[int]]], length: int, seed: int, purpose: str):
        """texts: of each text, its tokens and the number of each token's word; length: T; purpose: blocks of another purpose get other
        draws."""
        columns: list[list[np.ndarray]] = [[], [], []]
        for n, (ids, words) in enumerate(texts):
            of_text = np.asarray(words, dtype=np.int64) + (n << 32)  # another text's words have other numbers
            for column, values in zip(columns, (ids, [n] * len(ids), of_text), strict=True):
                column.append(np.asarray(values, dtype=np.int64))
        self.seed, self.purpose = seed, purpose
        tokens = sum(map(len, columns[0]))
        count = tokens // length
        self.left_out = tokens - count * length
        """Tokens at the end that fill no block."""
        self.ids_NT, self.texts_NT, self.words_NT = (
            np.concatenate([*column, np.zeros(0, np.int64)])[: count * length].reshape(count, length)
            for column in columns
        )

    def __len__(self) -> int:
        return len(self.ids_NT)

    def __getitem__(self, index: int) -> Block:
        epoch, n = divmod(index, len(self))
        draws = generator(f"{self.purpose} {self.seed} {epoch} {n}")
        other = (n + 1 + draws.integers(max(1, len(self) - 1))) % len(self)
        return Block(
            input_ids=self.ids_NT[n], texts=self.texts_NT[n], words=self.words_NT[n],
            other=self.ids_NT[other], other_words=self.words_NT[other], draws=draws,
        )  # fmt: skip


def generator(key: str) -> np.random.Generator:
    """Returns a generator that depends on `key` alone, on every machine."""
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
