"""Rows of unlike length as tensors: cut into windows, put together into batches, padded on the left.

Shapes: B rows of one batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def batches(items: Sequence, lengths: list[int], rows: int, tokens: int | None) -> Iterator[list]:
    """Items of like length together, longest first (so that what doesn't fit in memory shows at once): at most `rows`
    items and, padding counted, `tokens` tokens; an item that is longer than that goes alone."""
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
    """(ids, mask), each (B, T): every row ends at the right edge, so that the next token of all comes from column T."""
    import torch

    width = max(len(r) for r in rows)
    ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
    return ids, mask


def positions(mask_BT):
    return (mask_BT.cumsum(1) - 1).clamp(min=0)


def windows(ids: list[int], size: int) -> Iterator[tuple[list[int], list[int]]]:
    """Cuts a document into (context, scored) so that each token but the first is scored once, within windows of `size`
    that move by half of it: after the first window, at least size/2 tokens of context stand before every token."""
    begin, end = 1, min(size, len(ids))
    while begin < len(ids):
        yield ids[max(0, end - size) : begin], ids[begin:end]
        begin, end = end, min(end + size // 2, len(ids))
