"""Prompts read into a model's cache, and what is written after them.

Shapes: B rows of one batch, T tokens (left-padded), V vocabulary.
"""

from __future__ import annotations

from lib.batching import left_pad, positions


class Cached:
    """logits_BV: of the token that comes next in each row. A prompt that is there several times is read once."""

    def __init__(self, model, prompts: list[list[int]], pad: int, device: str):
        import torch

        self.model = model
        unique = list(dict.fromkeys(map(tuple, prompts)))
        ids_UT, self.mask_BT = left_pad(list(map(list, unique)), pad, device)
        out = model(
            input_ids=ids_UT, attention_mask=self.mask_BT, position_ids=positions(self.mask_BT), use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        self.cache, self.logits_BV = out.past_key_values, out.logits[:, -1]
        if len(unique) < len(prompts):
            place = {p: u for u, p in enumerate(unique)}
            self.keep(torch.tensor([place[tuple(p)] for p in prompts], device=device))

    def keep(self, index_B) -> None:
        """Goes on with these rows, in this order; a row may be there several times."""
        self.cache.batch_select_indices(index_B)
        self.mask_BT, self.logits_BV = self.mask_BT[index_B], self.logits_BV[index_B]

    def feed(self, ids_BC, fed_BC=None):
        """Reads C more tokens of each row, of which `fed_BC` (0 or 1) are there; returns their logits (B, C, V)."""
        import torch

        fed_BC = torch.ones_like(ids_BC) if fed_BC is None else fed_BC
        position_BC = self.mask_BT.sum(1, keepdim=True) + torch.arange(ids_BC.shape[1], device=ids_BC.device)
        self.mask_BT = torch.cat([self.mask_BT, fed_BC], 1)
        logits_BCV = self.model(
            input_ids=ids_BC, attention_mask=self.mask_BT, position_ids=position_BC, past_key_values=self.cache,
            use_cache=True,
        ).logits  # fmt: skip
        self.logits_BV = logits_BCV[:, -1]
        return logits_BCV
