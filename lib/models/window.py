"""Refuses inputs longer than a model's number of positions. Models accept such inputs, but were never trained on the later positions,
so their outputs there are meaningless."""

from __future__ import annotations

from collections.abc import Sequence

AFTER_PADDING = {
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod", "data2vec-text", "ibert", "mpnet",
    "longformer", "luke", "esm",
}  # fmt: skip
"""Architectures (model_type) whose first token takes the position after the padding token's id, as in fairseq."""


def positions(config) -> int | None:
    """Returns how many tokens a model of this transformers configuration has positions for. None: it sets no limit."""
    text = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    return most - text.pad_token_id - 1 if most and text.model_type in AFTER_PADDING else most


def refuse(what: str, lengths: Sequence[int], most: int | None, remedy: str) -> None:
    """Raises ValueError if some of `lengths` (tokens) are above `most`. what: plural noun for the inputs of these lengths."""
    over = [n for n in lengths if most is not None and n > most]
    if over:
        raise ValueError(
            f"{len(over):,} of {len(lengths):,} {what} have more tokens than the model has positions ({max(over):,} for {most:,}). {remedy}"
        )
