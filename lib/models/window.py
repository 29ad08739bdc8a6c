"""Refuses inputs longer than a model's number of positions. Models accept such inputs, but were never trained on the later positions,
so their outputs there are meaningless."""

from __future__ import annotations

from collections.abc import Sequence


def positions(config) -> int | None:
    """Returns the number of positions in a transformers configuration. None: it sets no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def refuse(what: str, lengths: Sequence[int], most: int | None, remedy: str) -> None:
    """Raises ValueError if some of `lengths` (tokens) are above `most`. what: plural noun for the inputs of these lengths."""
    over = [n for n in lengths if most is not None and n > most]
    if over:
        raise ValueError(
            f"{len(over):,} of {len(lengths):,} {what} have more tokens than the model has positions ({max(over):,} for {most:,}). {remedy}"
        )
