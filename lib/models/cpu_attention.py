"""Attention for decoding with grouped-query models: the query heads of a group become rows of one small matrix.

With one query token, transformers repeats keys and values for every query head, and PyTorch's CPU kernel then works head by
head. Here the query heads that share keys are placed on the query-length axis, which has length 1 otherwise. The result is the
same up to rounding, and 5 times faster for SmolLM2-135M (9 query heads, 3 groups) with 64 rows of 80 tokens in bfloat16 on one core.

Shapes: B rows, H query heads, G key heads, T query tokens, L key tokens, D channels.
"""

from __future__ import annotations

NAME = "sdpa_grouped_decode"


def install(model) -> None:
    """Makes a model that uses sdpa decode with `forward`. Other models are left unchanged."""
    if getattr(model.config, "_attn_implementation", None) != "sdpa":
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def forward(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """query (B, H, T, D), key and value (B, G, L, D), mask (B, 1, T, L) or None → (B, T, H, D), None."""
    from torch.nn.functional import scaled_dot_product_attention
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    b, h, t, d = query.shape
    g = key.shape[1]
    plain = kwargs.get("position_bias") is None and kwargs.get("s_aux") is None
    if t != 1 or g == h or not plain or (attention_mask is not None and attention_mask.shape[1] != 1):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    out = scaled_dot_product_attention(
        query.reshape(b, g, h // g, d), key, value, attn_mask=attention_mask, scale=scaling
    )
    return out.reshape(b, 1, h, value.shape[-1]), None
