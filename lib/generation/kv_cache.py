"""The key-value cache of a batch of prompts and of the tokens generated after them.

Shapes: B rows of one batch, U unique prompts, T tokens read so far (with padding), C further tokens, V vocabulary.
"""

from __future__ import annotations

from functools import cache

from lib.generation.batching import left_pad, positions

WORTH = 16
"""Shortest shared prefix, in tokens, that is read in a pass of its own."""


ROOM = 64
"""Spare capacity, in tokens, that is allocated with a layer's keys and values."""


@cache
def _roomy():
    from transformers.cache_utils import DynamicLayer

    class Roomy(DynamicLayer):
        """A DynamicLayer that allocates spare capacity and appends in place, instead of copying the whole cache at every token.

        On one core that copying took a quarter of the time of 50 answers from SmolLM2-135M in float32. For inference only: the
        tensors returned by successive calls of `update` share memory.
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
    """Returns an empty cache for a model of this config. Layers that don't keep all tokens (sliding windows) stay transformers' own."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    made = DynamicCache(config=config)
    made.layers = [_roomy()() if type(layer) is DynamicLayer else layer for layer in made.layers]
    return made


class Cached:
    """A batch of prompts that the model has read. logits_BV: logits of the next token of each row.

    A prefix that all prompts share (a system prompt, solved examples) is read once, and so is each of several equal prompts.
    """

    def __init__(self, model, prompts: list[list[int]], pad: int, device: str):
        import torch

        self.model = model
        unique = list(dict.fromkeys(map(tuple, prompts)))
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        # A sliding window would count the padding between the shared prefix and the rest as text.
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
        """Keeps only the rows `index_B`, in this order; a row may be repeated."""
        self.cache.batch_select_indices(index_B)
        self.mask_BT, self.logits_BV = self.mask_BT[index_B], self.logits_BV[index_B]

    def joinable(self) -> bool:
        """Whether `join` can be used. It can't with layers that have a window or a recurrent state: they keep one count of tokens read
        for all rows."""
        from transformers.cache_utils import DynamicLayer

        return all(type(layer) in (DynamicLayer, _roomy()) for layer in self.cache.layers)

    def join(self, other: Cached) -> None:
        """Appends the rows of `other`, padding the shorter rows on the left. `other` must not be used afterwards."""
        import torch

        width = max(self.mask_BT.shape[1], other.mask_BT.shape[1])

        def together(mine, theirs, after: int):
            """after: number of dimensions after the token dimension."""
            rows = [
                torch.nn.functional.pad(x, (*(0, 0) * after, width - x.shape[-1 - after], 0)) for x in (mine, theirs)
            ]
            return torch.cat(rows)

        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys, mine.values = together(mine.keys, theirs.keys, 1), together(mine.values, theirs.values, 1)
        self.mask_BT = together(self.mask_BT, other.mask_BT, 0)
        self.logits_BV = torch.cat([self.logits_BV, other.logits_BV])

    def trim(self) -> None:
        """Drops the columns on the left that are padding in every row."""
        if unread := int(self.mask_BT.any(0).int().argmax()):
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, unread:], layer.values[:, :, unread:]
            self.mask_BT = self.mask_BT[:, unread:]

    def feed(self, ids_BC, fed_BC=None, last: int = 0):
        """Reads C further tokens of each row and returns their logits (B, C, V), or only those of the `last` ones (0: all).

        fed_BC: 1 for real tokens, 0 for padding; None: all are real.
        """
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
        """Undoes the reading of some of the last C columns: keeps the tokens where `kept_BC` is 1. logits_BV is left unchanged.

        Raises RuntimeError if a layer can't be cropped, such as one with a full sliding window.
        """
        read = kept_BC.shape[1]
        self.mask_BT[:, -read:] *= kept_BC
        dead = read - int(
            (self.mask_BT[:, -read:].any(0).nonzero()[-1:] + 1).sum()
        )  # columns at the end that no row keeps
        if dead:
            self.cache.crop(-dead)
            self.mask_BT = self.mask_BT[:, :-dead]
