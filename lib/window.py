"""How many positions a model has, and what is longer: refused with its count. A model reads on past them, and what it says there is
nothing that it learnt."""

from __future__ import annotations

from collections.abc import Sequence


def positions(config) -> int | None:
    """Of a transformers configuration. None: it names no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def refuse(what: str, lengths: Sequence[int], most: int | None, remedy: str) -> None:
    """Raises ValueError where some of `lengths` (tokens) are above `most`. what: plural, what they are the lengths of."""
    over = [n for n in lengths if most is not None and n > most]
    if over:
        raise ValueError(
            f"{len(over):,} of {len(lengths):,} {what} have more tokens than the model has positions ({max(over):,} for {most:,}). {remedy}"
        )
