"""Which tokens of a text are masked, and what replaces them, in training and in evaluations.

Shapes: T tokens of a text, or of a block of texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

MASKED, RANDOM = 0.8, 0.1
"""Shares of BERT's chosen positions that become [MASK] and a random token; the rest stays (Devlin et al. 2019, section 3.1)."""


def generator(key: str) -> np.random.Generator:
    """Returns a generator that depends on `key` alone, on every machine."""
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def text_tokens(tokenizer: Any) -> np.ndarray:
    """Returns the sorted ids of the tokens that stand for text, not special ones."""
    special = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
    return np.array([i for i in range(len(tokenizer)) if i not in special], dtype=np.int64)


def choose(
    free_T: np.ndarray, share: float, draws: np.random.Generator, words_T: np.ndarray | None = None
) -> np.ndarray:
    """Returns which positions are predicted, (T,) bool.

    Always round(share · T) of them, at least one, as long as `free_T` has so many: the number is then the same in each block. free_T:
    (T,) bool, positions that may be chosen. words_T: the number of each position's word; whole words are chosen until the number is
    reached, and the last word may be cut (BERT leaves out words that are too long).
    """
    wanted = max(1, round(share * len(free_T)))
    at = np.flatnonzero(free_T)
    if words_T is None:
        picked = draws.permutation(at)[:wanted]
    else:
        order = draws.permutation(np.unique(words_T[at]))
        rank = {int(word): n for n, word in enumerate(order)}
        picked = np.array(sorted(at, key=lambda i: (rank[int(words_T[i])], i))[:wanted], dtype=np.int64)
    out = np.zeros(len(free_T), bool)
    out[picked] = True
    return out


def replace(
    ids_T: np.ndarray, chosen_T: np.ndarray, mask: int, regular: np.ndarray, draws: np.random.Generator
) -> np.ndarray:
    """Returns the tokens with 80% of the chosen ones replaced by `mask`, 10% by random ones of `regular`, and 10% kept."""
    out, u_T = ids_T.copy(), draws.random(len(ids_T))
    random_T = regular[draws.integers(len(regular), size=len(ids_T))]
    out[chosen_T & (u_T < MASKED)] = mask
    swapped_T = chosen_T & (u_T >= MASKED) & (u_T < MASKED + RANDOM)
    out[swapped_T] = random_T[swapped_T]
    return out


def noise_and_spans(length: int, density: float, mean: float) -> tuple[int, int]:
    """Returns (number of noise tokens, number of their spans): length · density and noise / mean, rounded."""
    noise = min(max(round(length * density), 1), length - 1)
    return noise, min(max(round(noise / mean), 1), noise, length - noise)


def spans(length: int, density: float, mean: float, draws: np.random.Generator) -> np.ndarray:
    """Returns which of `length` tokens are noise, (length,) bool: T5's random_spans_noise_mask (Raffel et al. 2020, section 3.1.4).

    Noise and kept tokens are each cut into the same number of random non-empty parts, which alternate, beginning with a kept one.
    """
    noise, number = noise_and_spans(length, density, mean)

    def parts(total: int) -> np.ndarray:
        cuts = np.sort(draws.permutation(total - 1)[: number - 1]) + 1
        return np.diff(np.concatenate([[0], cuts, [total]]))

    lengths = np.stack([parts(length - noise), parts(noise)], axis=1).ravel()
    return np.repeat(np.tile([False, True], number), lengths)


def replaced(ids_T: np.ndarray, at_T: np.ndarray, sentinels: list[int]) -> Iterator[int]:
    """Yields the tokens with each run of positions in `at_T` replaced by the next sentinel."""
    used = 0
    for n, (token, gone) in enumerate(zip(ids_T, at_T, strict=True)):
        if not gone:
            yield int(token)
        elif n == 0 or not at_T[n - 1]:
            yield sentinels[used]
            used += 1
