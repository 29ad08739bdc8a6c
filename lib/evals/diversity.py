"""How different the answers of one cell are from each other: what sampling buys and greedy decoding gives up."""

from __future__ import annotations

import random
from collections.abc import Sequence

MOST = 50
"""Answers compared with each other for Self-BLEU, drawn by the seed: its work grows with their square."""


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Share of different ones among all n-grams of words of all answers (Li et al. 2016, https://arxiv.org/abs/1510.03055).

    Falls with the number of answers, so it compares only as many; None where no answer has n words.
    """
    from lib.evals.words import spaced

    grams = [tuple(words[i : i + n]) for t in texts for words in [spaced(t).split()] for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(texts: Sequence[str], seed: int) -> float | None:
    """Mean BLEU-4 of each answer against all the others, 0 to 100 (Zhu et al. 2018, https://arxiv.org/abs/1802.01886);
    100: they are all the same. None with fewer than two answers that say something."""
    from sacrebleu.metrics import BLEU

    from lib.evals.words import spaced

    said = [spaced(t) for t in texts if t.strip()]
    said = random.Random(seed).sample(said, min(MOST, len(said)))
    if len(said) < 2:
        return None
    bleu = BLEU(effective_order=True)
    return sum(bleu.sentence_score(t, said[:i] + said[i + 1 :]).score for i, t in enumerate(said)) / len(said)
