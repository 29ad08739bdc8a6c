"""Bytes that autograd saves in a model's forward pass, from shapes alone (torch's FakeTensorMode)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any


def layers(net: Any) -> Any:
    """Returns the layers (a torch ModuleList) of a model; of an encoder-decoder, all."""
    import torch

    if net.config.is_encoder_decoder:
        return torch.nn.ModuleList([*net.get_encoder().block, *net.get_decoder().block])
    lists = (m for m in net.modules() if isinstance(m, torch.nn.ModuleList))
    return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))


def cut(shape: Any, layers: int) -> None:
    """Reduces a config to its first `layers` layers."""
    shape.num_hidden_layers = layers
    if getattr(shape, "layer_types", None):
        shape.layer_types = shape.layer_types[:layers]


def kept(
    net: Any, config: Any, build: Callable[[Any], Any], tokens: tuple[int, int], precision: str
) -> tuple[int, int]:
    """Returns (bytes independent of B, bytes per sequence of B), without the weights. If all layers are alike, models of one and two
    layers are measured and extrapolated.

    build: returns the model of a config, on torch's meta device; tokens: of the input, and of a decoder's.
    """
    shape = config.get_text_config()
    kinds = getattr(shape, "layer_types", None) or [""] * shape.num_hidden_layers
    looks = [[(n, p.shape) for n, p in layer.named_parameters()] for layer in layers(net)]
    if any(look != looks[0] for look in looks) or len(set(kinds)) > 1 or len(looks) < 3:
        one, two = (_saved(net, batch, tokens, precision) for batch in (1, 2))
        return 2 * one - two, two - one
    found = []
    for few in (1, 2):
        small = copy.deepcopy(config)
        cut(small.get_text_config(), few)
        one, two = (_saved(build(small), batch, tokens, precision) for batch in (1, 2))
        found.append((2 * one - two, two - one))
    return tuple(first + (second - first) * (len(looks) - 1) for first, second in zip(*found, strict=True))


def _saved(net, batch: int, tokens: tuple[int, int], precision: str) -> int:
    """Returns the bytes that autograd saves in a forward pass through the layers, without the weights themselves. tokens: as in kept."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()
    weights = _pretend(net, mode)
    found: dict[int, object] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        found[storage._cdata] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32")
    with mode, hooks, half:
        ids = torch.zeros(batch, tokens[0], dtype=torch.long)
        where = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if net.config.is_encoder_decoder:
            read = torch.zeros(batch, tokens[1], dtype=torch.long)
            out = [
                net.get_decoder()(input_ids=read, encoder_hidden_states=net.get_encoder()(**where)[0], use_cache=False)
            ]
        else:
            nets = [net, *([net.generator] if hasattr(net, "generator") else [])]
            out = [n.base_model(**where, use_cache=False) for n in nets]
    del out
    return sum(s.nbytes() for c, s in found.items() if c not in weights)


def _pretend(net, mode) -> set[int]:
    """Replaces meta tensors, which autocast ignores, by fake CPU tensors. Returns the ids of the weights' storages."""
    import torch

    fake: dict[int, torch.nn.Parameter] = {}
    turn = lambda t: mode.fake_tensor_converter.from_meta_and_device(mode, t.detach().to("meta"), torch.device("cpu"))  # noqa: E731
    for module in net.modules():
        for name, p in module._parameters.items():
            if p is not None:
                if id(p) not in fake:
                    fake[id(p)] = torch.nn.Parameter(turn(p), requires_grad=p.requires_grad)
                module._parameters[name] = fake[id(p)]
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = turn(b)
    return {p.untyped_storage()._cdata for p in fake.values()}
