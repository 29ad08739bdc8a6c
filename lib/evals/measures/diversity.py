"""Diversity: how much the answers of one run, task and decoding differ from each other."""

from __future__ import annotations

import random
from collections.abc import Sequence

MOST = 50
"""Maximum number of answers, drawn with the seed, for Self-BLEU, whose cost grows with their square."""


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Returns distinct-n, the share of unique ones among all answers' word n-grams (Li et al. 2016, https://arxiv.org/abs/1510.03055).

    It falls with the number of answers, so compare only equal numbers. None if no answer has n words.
    """
    from lib.evals.tasks.words import spaced

    grams = [tuple(words[i : i + n]) for t in texts for words in [spaced(t).split()] for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(texts: Sequence[str], seed: int) -> float | None:
    """Returns Self-BLEU, the mean BLEU-4 of each answer against all others, from 0 to 100 (Zhu et al. 2018,
    https://arxiv.org/abs/1802.01886). 100 means that all answers are identical. None with fewer than two non-empty answers."""
    from sacrebleu.metrics import BLEU

    from lib.evals.tasks.words import spaced

    answers = [spaced(t) for t in texts if t.strip()]
    answers = random.Random(seed).sample(answers, min(MOST, len(answers)))
    if len(answers) < 2:
        return None
    bleu = BLEU(effective_order=True)
    return sum(bleu.sentence_score(t, answers[:i] + answers[i + 1 :]).score for i, t in enumerate(answers)) / len(
        answers
    )
