"""Distinct-n: the share of different n-grams among all n-grams of some answers. 1: no n-gram occurs twice.

Li et al. 2016, https://aclanthology.org/N16-1014, section 5.1, with tokens for words. It falls with the number of tokens, so only sets
of about the same size can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence


def distinct(answers: Sequence[Sequence[int]], n: int = 2) -> float | None:
    """Returns distinct-n of answers as token ids, whose n-grams don't reach across answers. None: there is no n-gram."""
    grams = [tuple(ids[i : i + n]) for ids in answers for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None
