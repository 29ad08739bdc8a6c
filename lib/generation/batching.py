"""Rows of different lengths as tensors: cut into windows, grouped into batches, padded on the left.

Shapes: B rows of one batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def batches(items: Sequence, lengths: list[int], rows: int, tokens: int | None) -> Iterator[list]:
    """Yields batches of items of similar length, longest first, so that running out of memory shows at once.

    A batch has at most `rows` items and, including padding, `tokens` tokens (None: no limit). A longer item is a batch by itself.
    """
    batch: list = []
    width = 0
    for i in sorted(range(len(items)), key=lambda i: -lengths[i]):
        if batch and (len(batch) == rows or (tokens and (len(batch) + 1) * width > tokens)):
            yield batch
            batch = []
        width = width if batch else lengths[i]
        batch.append(items[i])
    if batch:
        yield batch


def left_pad(rows: list[list[int]], pad: int, device: str):
    """Returns (ids, mask), each (B, T). Every row ends in the last column, so that the next token of every row comes after it."""
    import torch

    width = max(len(r) for r in rows)
    ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
    return ids, mask


def positions(mask_BT):
    """Returns the position ids (B, T): each real token's index in its row, and 0 for padding on the left."""
    return (mask_BT.cumsum(1) - 1).clamp(min=0)


def windows(ids: list[int], size: int) -> Iterator[tuple[list[int], list[int]]]:
    """Cuts a document into pieces (context, scored tokens) that score each token but the first once.

    Windows of `size` tokens move by size/2, so after the first window every scored token has at least size/2 tokens of context.
    """
    begin, end = 1, min(size, len(ids))
    while begin < len(ids):
        yield ids[max(0, end - size) : begin], ids[begin:end]
        begin, end = end, min(end + size // 2, len(ids))
