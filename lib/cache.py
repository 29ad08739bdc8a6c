"""Prompts read into a model's cache, and what is written after them.

Shapes: B rows of one batch, T tokens read so far (with padding), C more, V vocabulary.
"""

from __future__ import annotations

from functools import cache

from lib.batching import left_pad, positions

WORTH = 16
"""Tokens; a shorter beginning is not worth a pass of its own."""


ROOM = 64
"""Tokens that a layer's keys and values have room for beyond those read."""


@cache
def _roomy():
    from transformers.cache_utils import DynamicLayer

    class Roomy(DynamicLayer):
        """A DynamicLayer that doesn't copy all that was read at every token: it is written into memory that has room for more.

        On one core that copying was a quarter of the time of 50 answers from SmolLM2-135M in float32. For inference: what
        `update` returned before holds the same memory.
        """

        room = ()

        def update(self, key_states, value_states, *args, **kwargs):
            import torch

            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            read, fed = self.get_seq_length(), key_states.shape[-2]
            kept = [(self.keys, key_states), (self.values, value_states)]
            fits = self.room and read and self.room[0].shape[-2] >= read + fed
            if not fits or any(r.data_ptr() != old.data_ptr() for r, (old, _) in zip(self.room, kept, strict=True)):
                self.room = []
                for old, new in kept:
                    space = new.new_empty(*new.shape[:-2], read + fed + ROOM, new.shape[-1])
                    if read:
                        space[..., :read, :] = old
                    self.room.append(space)
            for space, (_, new) in zip(self.room, kept, strict=True):
                space[..., read : read + fed, :] = new
            self.keys, self.values = (torch.narrow(space, -2, 0, read + fed) for space in self.room)
            return self.keys, self.values

    return Roomy


def roomy(config):
    """An empty cache for a model of this configuration; layers that don't keep all tokens (sliding windows) are transformers' own."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    made = DynamicCache(config=config)
    made.layers = [_roomy()() if type(layer) is DynamicLayer else layer for layer in made.layers]
    return made


class Cached:
    """logits_BV: of the token that comes next in each row.

    What all prompts begin with (a system prompt, solved examples) is read once, and so is a prompt that is there several times.
    """

    def __init__(self, model, prompts: list[list[int]], pad: int, device: str):
        import torch

        self.model = model
        unique = list(dict.fromkeys(map(tuple, prompts)))
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        # A sliding window counts the padding between a shared beginning and the rest as if it were text.
        unsafe = kinds != {"full_attention"} or getattr(config, "sliding_window", None)
        parted = (i for i, column in enumerate(zip(*unique, strict=False)) if len(set(column)) > 1)
        shared = min(next(parted, len(unique[0])), min(map(len, unique)) - 1) if len(unique) > 1 and not unsafe else 0
        shared = shared if shared >= WORTH else 0
        first_UT, self.mask_BT = left_pad(
            [list(p[: shared or None]) for p in (unique[:1] if shared else unique)], pad, device
        )
        out = model(
            input_ids=first_UT, attention_mask=self.mask_BT, position_ids=positions(self.mask_BT), use_cache=True,
            past_key_values=roomy(config), logits_to_keep=1,
        )  # fmt: skip
        self.cache, self.logits_BV = out.past_key_values, out.logits[:, -1]
        if shared:
            self.keep(torch.zeros(len(unique), dtype=torch.long, device=device))
            self.feed(*left_pad([list(p[shared:]) for p in unique], pad, device), last=1)
        if len(unique) < len(prompts):
            place = {p: u for u, p in enumerate(unique)}
            self.keep(torch.tensor([place[tuple(p)] for p in prompts], device=device))

    def keep(self, index_B) -> None:
        """Goes on with these rows, in this order; a row may be there several times."""
        self.cache.batch_select_indices(index_B)
        self.mask_BT, self.logits_BV = self.mask_BT[index_B], self.logits_BV[index_B]

    def joinable(self) -> bool:
        """Whether `join` can be used: a layer with a window, or with a state of its own, counts what it has read for all rows alike."""
        from transformers.cache_utils import DynamicLayer

        return all(type(layer) in (DynamicLayer, _roomy()) for layer in self.cache.layers)

    def join(self, other: Cached) -> None:
        """Takes the rows of `other` in, after its own; the shorter ones are padded on the left. `other` is used up."""
        import torch

        width = max(self.mask_BT.shape[1], other.mask_BT.shape[1])

        def together(mine, theirs, after: int):
            """`after`: dimensions after that of the tokens."""
            rows = [
                torch.nn.functional.pad(x, (*(0, 0) * after, width - x.shape[-1 - after], 0)) for x in (mine, theirs)
            ]
            return torch.cat(rows)

        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys, mine.values = together(mine.keys, theirs.keys, 1), together(mine.values, theirs.values, 1)
        self.mask_BT = together(self.mask_BT, other.mask_BT, 0)
        self.logits_BV = torch.cat([self.logits_BV, other.logits_BV])

    def trim(self) -> None:
        """Forgets the columns on the left that are padding in every row."""
        if unread := int(self.mask_BT.any(0).int().argmax()):
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, unread:], layer.values[:, :, unread:]
            self.mask_BT = self.mask_BT[:, unread:]

    def feed(self, ids_BC, fed_BC=None, last: int = 0):
        """Reads C more tokens of each row, of which `fed_BC` (0 or 1) are there; returns the logits (B, C, V), or of the
        `last` ones only."""
        import torch

        fed_BC = torch.ones_like(ids_BC) if fed_BC is None else fed_BC
        position_BC = self.mask_BT.sum(1, keepdim=True) + positions(fed_BC)
        self.mask_BT = torch.cat([self.mask_BT, fed_BC], 1)
        logits_BCV = self.model(
            input_ids=ids_BC, attention_mask=self.mask_BT, position_ids=position_BC, past_key_values=self.cache,
            use_cache=True, logits_to_keep=last,
        ).logits  # fmt: skip
        self.logits_BV = logits_BCV[:, -1]
        return logits_BCV

    def forget(self, kept_BC) -> None:
        """Goes on as if of the C columns read last only those of `kept_BC` (0 or 1) had been read. logits_BV stays as it was.
        Raises RuntimeError where a layer can't go back, as one with a sliding window that is full."""
        read = kept_BC.shape[1]
        self.mask_BT[:, -read:] *= kept_BC
        dead = read - int(
            (self.mask_BT[:, -read:].any(0).nonzero()[-1:] + 1).sum()
        )  # columns at the end that no row has
        if dead:
            self.cache.crop(-dead)
            self.mask_BT = self.mask_BT[:, :-dead]
