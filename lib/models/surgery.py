"""Parts taken out of a model in place, so that what stays computes what it did and its config says how much there is.

For decoders built like Llama (Mistral, Qwen, SmolLM, …): model.layers, each with self_attn.{q,k,v,o}_proj and mlp.{gate,up,down}_proj.
"""

from __future__ import annotations


def layers(model, kept: list[int]):
    """The model with these decoder layers, in their order."""
    from torch.nn import ModuleList

    config = model.config
    model.model.layers = ModuleList(model.model.layers[i] for i in kept)
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place  # its place in the cache
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept]
    return model


def channels(model, kept: list[list[int]]):
    """The model with these MLP channels of each layer, as many in each."""
    for layer, places in zip(model.model.layers, kept, strict=True):
        mlp = layer.mlp
        for linear in (mlp.gate_proj, mlp.up_proj):
            _outputs(linear, places)
        _inputs(mlp.down_proj, places)
    model.config.intermediate_size = len(kept[0])
    return model


def kv_heads(model, kept: list[list[int]]):
    """The model with these key-value heads of each layer, as many in each, and the query heads that ask them."""
    config = model.config
    size = model.model.layers[0].self_attn.head_dim
    asked = config.num_attention_heads // config.num_key_value_heads
    for layer, heads in zip(model.model.layers, kept, strict=True):
        attention = layer.self_attn
        own = [h * size + i for h in heads for i in range(size)]
        queries = [h * asked * size + i for h in heads for i in range(asked * size)]
        _outputs(attention.k_proj, own)
        _outputs(attention.v_proj, own)
        _outputs(attention.q_proj, queries)
        _inputs(attention.o_proj, queries)
    config.head_dim = size  # else it would be taken from the number of heads
    config.num_key_value_heads = len(kept[0])
    config.num_attention_heads = asked * len(kept[0])
    return model


def _outputs(linear, kept: list[int]) -> None:
    from torch.nn import Parameter

    linear.weight = Parameter(linear.weight.data[kept])
    if linear.bias is not None:
        linear.bias = Parameter(linear.bias.data[kept])
    linear.out_features = len(kept)


def _inputs(linear, kept: list[int]) -> None:
    from torch.nn import Parameter

    linear.weight = Parameter(linear.weight.data[:, kept])
    linear.in_features = len(kept)
