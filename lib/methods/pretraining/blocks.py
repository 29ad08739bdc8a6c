"""Texts as blocks of equal length, and the random numbers that an objective draws for each.

The tokens of all texts are joined, each text followed by its end token, and cut into blocks (GPT-2; FULL-SENTENCES in RoBERTa, Liu et
al. 2019, https://arxiv.org/abs/1907.11692, section 4.2). The rest, which fills no block, is left out and counted. Tokens stay in a file
that is mapped into memory, so a corpus may be larger than memory.

What an objective draws for a block depends on (seed, epoch, block) alone. It is therefore the same on any number of workers, for any
micro-batch, and after a resume. transformers' collators draw from a generator that runs one batch ahead of the checkpoint: a resumed
run gets other masks.

Shapes: N blocks, T tokens of a block.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypedDict

import numpy as np
from torch.utils.data import Dataset

from lib.models.masking import generator


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


class Tokens:
    """The joined tokens of all texts.

    rows: for each text {"ids": its tokens, "words": the number of each token's word}, as a memory-mapped datasets.Dataset or an iterable.
    """

    def __init__(self, rows: Any):
        columns: dict[str, list[np.ndarray]] = {"ids": [], "words": []}
        lengths = [np.zeros(0, np.int64)]
        if hasattr(rows, "data"):
            for name, parts in columns.items():
                chunks = rows.data.column(name).chunks
                parts += [chunk.flatten().to_numpy() for chunk in chunks]  # views of the file
                if name == "ids":
                    lengths += [np.diff(chunk.offsets.to_numpy()) for chunk in chunks]
        else:
            for row in rows:
                lengths.append(np.array([len(row["ids"])]))
                for name, parts in columns.items():
                    parts.append(np.asarray(row[name], dtype=np.int64))
        self.columns = columns
        self.ends = np.concatenate(lengths).cumsum()
        """Of each text: the number of tokens up to its end."""
        self.parts = np.array([len(part) for part in columns["ids"]], dtype=np.int64).cumsum()
        self.count = int(self.ends[-1]) if len(self.ends) else 0

    def between(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (tokens, texts, words) from `start` to `end`, (end − start,) int64 each. Texts share no numbers of words."""
        ids, words = [], []
        part, at = int(np.searchsorted(self.parts, start, side="right")), start
        while at < end:
            first = at - (int(self.parts[part - 1]) if part else 0)
            last = first + min(end, int(self.parts[part])) - at
            ids.append(self.columns["ids"][part][first:last])
            words.append(self.columns["words"][part][first:last])
            at, part = at + last - first, part + 1
        texts = np.searchsorted(self.ends, np.arange(start, end), side="right")
        return np.concatenate(ids).astype(np.int64), texts, np.concatenate(words).astype(np.int64) + (texts << 32)


class Blocks(Dataset):
    """N blocks. Index epoch · N + n is block n in that epoch (lib/stage/epochs.py counts so)."""

    by_epoch = True

    def __init__(self, tokens: Tokens | Iterable[dict], length: int, seed: int, purpose: str):
        """length: T; purpose: blocks of another purpose get other draws."""
        self.tokens = tokens if isinstance(tokens, Tokens) else Tokens(tokens)
        self.length, self.seed, self.purpose = length, seed, purpose
        self.left_out = self.tokens.count % length
        """Tokens at the end that fill no block."""

    def __len__(self) -> int:
        return self.tokens.count // self.length

    def __getitem__(self, index: int) -> Block:
        epoch, n = divmod(index, len(self))
        draws = generator(f"{self.purpose} {self.seed} {epoch} {n}")
        other = (n + 1 + int(draws.integers(max(1, len(self) - 1)))) % len(self)
        ids, texts, words = self.block(n)
        other_ids, _, other_words = self.block(other)
        return Block(input_ids=ids, texts=texts, words=words, other=other_ids, other_words=other_words, draws=draws)

    def block(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (tokens, texts, words) of block n."""
        return self.tokens.between(n * self.length, (n + 1) * self.length)
