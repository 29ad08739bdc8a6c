"""Computes common prefixes of a batch's rows once, and padding not at all, on a CPU.

In a causal model the hidden state at a position depends only on the tokens up to it, so the rows of a batch form a prefix
tree: the two answers of a pair share a prompt, a conversation's turns share the turns before them, and all rows may share a
system prompt. The decoder processes each node of the tree once. Only attention itself, a few percent of a step, works on whole
rows. Loss and gradients are unchanged up to rounding.

Shapes: R rows of T tokens as the trainer padded them, N nodes of the tree; H query heads, G key heads, D channels each.
"""

from __future__ import annotations

import functools
from functools import cache
from types import MethodType

from lib.models import cpu_attention

NAME = "shared_prefixes"

ARCHITECTURES = {"llama", "qwen2", "qwen3", "mistral", "smollm3"}
"""Values of model_type with whose decoders this is tested (tests/models/test_prefixes.py)."""


class Tree:
    """The prefix tree of padded rows. Raises ValueError if a row isn't padded on the right.

    node_RT: the node of every position (for padding node 0, whose value isn't used); first_N: the first position (r · T + t) of
    each node; later_M, of_M: all other positions, and their nodes.
    """

    def __init__(self, ids_RT, mask_RT):
        import torch

        known: dict[tuple[int, int], int] = {}
        node, first, later, of, depth, tokens = [], [], [], [], [], []
        width, lengths = ids_RT.shape[1], mask_RT.sum(1).tolist()
        if not right_padded(mask_RT):
            raise ValueError("rows must be padded on the right")
        for r, (row, length) in enumerate(zip(ids_RT.tolist(), lengths, strict=True)):
            parent, path = -1, []
            for t, token in enumerate(row[:length]):
                found = known.get((parent, token))
                if found is None:
                    found = known[parent, token] = len(first)
                    first.append(r * width + t)
                    depth.append(t)
                    tokens.append(token)
                else:
                    later.append(r * width + t)
                    of.append(found)
                path.append(found)
                parent = found
            node += path + [0] * (width - length)
        self.rows, self.width = ids_RT.shape
        self.node_RT, self.first_N, self.depth_N, self.tokens_N, self.later_M, self.of_M = (
            torch.tensor(x, dtype=torch.long) for x in (node, first, depth, tokens, later, of)
        )
        self._causal = {}

    def causal(self, dtype, groups: int):
        """Returns an additive causal mask (1, groups · T, T) for `groups` query heads stacked along the rows."""
        import torch

        if dtype not in self._causal:
            mask_TT = torch.full((self.width, self.width), torch.finfo(dtype).min, dtype=dtype).triu(1)
            self._causal[dtype] = mask_TT.repeat(groups, 1)[None]
        return self._causal[dtype]


def right_padded(mask_RT) -> bool:
    """Whether all padding is at the right end of the rows."""
    import torch

    return bool((mask_RT.bool() == (torch.arange(mask_RT.shape[1]) < mask_RT.sum(1, keepdim=True))).all())


@cache
def _functions():
    """Returns the functions (spread, collect)."""
    from torch.autograd import Function

    class Spread(Function):
        """x (N, C) → (R · T, C): every position gets its node's values; padding gets node 0's, and gives no gradient."""

        @staticmethod
        def forward(ctx, x, tree):
            ctx.tree = tree
            return x.index_select(0, tree.node_RT)

        @staticmethod
        def backward(ctx, grad):
            tree = ctx.tree
            grad = grad.reshape(len(tree.node_RT), -1)
            out = grad.index_select(0, tree.first_N)
            if len(tree.later_M):
                out.index_add_(0, tree.of_M, grad.index_select(0, tree.later_M))
            return out, None

    class Collect(Function):
        """x (R · T, C) → (N, C): one position of each node; the others hold the same values and are left out."""

        @staticmethod
        def forward(ctx, x, tree):
            ctx.tree = tree
            return x.index_select(0, tree.first_N)

        @staticmethod
        def backward(ctx, grad):
            tree = ctx.tree
            return grad.new_zeros(len(tree.node_RT), grad.shape[1]).index_copy_(0, tree.first_N, grad), None

    return Spread.apply, Collect.apply


def attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, tree=None, **kwargs):
    """query (1, H, N, D), key and value (1, G, N, D) of a tree's nodes → (1, N, H, D), None. Without a tree: lib/models/cpu_attention.py."""
    import torch

    if tree is None:
        return cpu_attention.forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    spread, collect = _functions()
    _, h, n, d = query.shape
    g, r, t = key.shape[1], tree.rows, tree.width

    def whole(x_GND, heads):  # (1, heads, N, D) → (R, T, heads, D)
        return spread(x_GND[0].transpose(0, 1).reshape(n, heads * d), tree).view(r, t, heads, d)

    # The query heads of a group are stacked along the rows, so that keys and values needn't be repeated for each.
    q = whole(query, h).permute(0, 2, 1, 3).reshape(r * g, h // g * t, d)
    k = whole(key, g).permute(0, 2, 3, 1).reshape(r * g, d, t)
    v = whole(value, g).permute(0, 2, 1, 3).reshape(r * g, t, d)
    scores = torch.baddbmm(tree.causal(q.dtype, h // g), q, k, alpha=scaling or d**-0.5)
    out = torch.bmm(scores.softmax(-1, dtype=torch.float32).to(v.dtype), v)
    out = out.view(r, h, t, d).transpose(1, 2).reshape(r * t, h * d)
    return collect(out, tree).view(1, n, h, d), None


def install(model) -> bool:
    """Makes the decoder of `model` (a causal model, a classifier or a PEFT model of one) share prefixes. Returns False, without
    any change, if the model doesn't support it. Models with dropout don't, because dropout must differ between rows.
    """
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = whole.config
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    dropout = any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules())
    if (
        config.model_type not in ARCHITECTURES
        or layers != {"full_attention"}
        or (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True))
        or getattr(config, "attention_dropout", 0.0)
        or dropout
        or next(model.parameters()).device.type != "cpu"
        or config._attn_implementation not in ("eager", "sdpa", cpu_attention.NAME)
    ):
        return False
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    whole.set_attn_implementation(NAME)
    decoder = whole.base_model
    decoder.forward = MethodType(_forward(decoder.forward), decoder)
    return True


def _forward(plain):
    import torch

    spread, _ = _functions()

    @functools.wraps(plain)
    def forward(self, input_ids=None, attention_mask=None, use_cache=None, **kwargs):
        cached = self.config.use_cache if use_cache is None else use_cache
        unusual = any(v is not None and v is not False for v in kwargs.values())
        rows = input_ids is not None and attention_mask is not None and attention_mask.ndim == 2
        if cached or unusual or not rows or not right_padded(attention_mask):
            return plain(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache, **kwargs)
        tree = Tree(input_ids, attention_mask)
        anything = torch.zeros(
            1, 1, 1, 1
        )  # transformers passes a 4-dimensional mask on unchanged; `attend` has its own
        out = plain(
            input_ids=tree.tokens_N[None], attention_mask=anything, position_ids=tree.depth_N[None], use_cache=False, tree=tree
        )  # fmt: skip
        hidden_RTC = spread(out.last_hidden_state[0], tree).view(*input_ids.shape, -1)
        return type(out)(last_hidden_state=hidden_RTC)

    return forward
