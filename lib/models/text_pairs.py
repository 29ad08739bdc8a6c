"""The tokens of a text, or of a pair of texts, as a classifier reads them."""

from __future__ import annotations

from typing import Any


def tokens(tokenizer: Any, text: str, second: str | None = None, max_length: int | None = None) -> dict[str, list[int]]:
    """Returns the tokenizer's fields, such as input_ids (T,) and BERT's token_type_ids. A pair is separated as the tokenizer separates
    pairs; by a line break if it has no sep_token, as those of most decoders, which would join the two texts without anything between them.

    max_length: of two texts that are longer together, the end of the longer one is cut first; None: nothing is cut.
    """
    if second is not None and tokenizer.sep_token_id is None:
        text, second = f"{text}\n{second}", None
    return dict(tokenizer(text, second, truncation=max_length is not None, max_length=max_length))
