"""The ways to prune a model: one function each, which changes the model in place.

    magnitude   weights near 0 become 0, a share of every matrix           Han et al. 2015, https://arxiv.org/abs/1506.02626
    wanda       those of the least |W_ij| · ‖X_j‖, a share of every row    Sun et al. 2023, https://arxiv.org/abs/2306.11695
    width       MLP channels and key-value heads (with their query heads) of the least ‖X_j‖ · ‖W_:,j‖ are taken out, as many of
                every layer                                                Muralidharan et al. 2024, https://arxiv.org/abs/2407.14679
    depth       the layers of the least influence are taken out            Men et al. 2024, https://arxiv.org/abs/2403.03853

magnitude and wanda leave the shapes: what they save needs kernels or files for sparse matrices, such as 2:4 on NVIDIA GPUs from
Ampere on (Mishra et al. 2021, https://arxiv.org/abs/2104.08378). width and depth give a smaller model of the same kind.

Shapes: O outputs and I inputs of a linear layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from lib.methods.pruning.importance import Seen, columns, linears
from lib.models import surgery


@dataclass(frozen=True)
class Method:
    about: str
    run: Callable[[object, Seen | None, object], None]
    """(model, what was seen or None, args with the fields of PruneConfig) → None; the model is changed."""
    takes: tuple[str, ...]
    """The fields that say how much; one of them is needed."""
    reads: bool = True
    """Whether it looks at rows."""
    sparse: bool = False
    """Whether it leaves zeros, which healing must not fill."""


def smallest(score_OI, sparsity: float, per_row: bool):
    """(O, I) bool: the share `sparsity` of the least scores, of the matrix or of each row. Of equal ones, the first."""
    import torch

    flat = score_OI if per_row else score_OI.reshape(1, -1)
    least = flat.argsort(dim=1, stable=True)[:, : round(sparsity * flat.shape[1])]
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, least, True).reshape(score_OI.shape)


def outside(score_OI, pattern: str):
    """(O, I) bool: of each M consecutive inputs all but the N of the greatest scores. pattern: "N:M". Raises ValueError."""
    import torch

    n, m = map(int, pattern.split(":"))
    if score_OI.shape[1] % m:
        raise ValueError(f"train.pattern: a layer has {score_OI.shape[1]} inputs, which can't be taken {m} at a time.")
    grouped = score_OI.reshape(score_OI.shape[0], -1, m)
    least = grouped.argsort(dim=2, stable=True)[..., : m - n]
    return torch.zeros_like(grouped, dtype=torch.bool).scatter_(2, least, True).reshape(score_OI.shape)


def _magnitude(model, seen, args) -> None:
    for module in linears(model).values():
        _zero(module.weight.data, module.weight.data.float().abs(), args, per_row=False)


def _wanda(model, seen, args) -> None:
    for name, module in linears(model).items():
        _zero(module.weight.data, module.weight.data.float().abs() * seen.norms[name], args, per_row=True)


def _zero(weight_OI, score_OI, args, per_row: bool) -> None:
    gone = outside(score_OI, args.pattern) if args.pattern else smallest(score_OI, args.sparsity, per_row)
    weight_OI[gone] = 0


KNOWN = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
"""The linear layers of a decoder layer like Llama's."""


def _width(model, seen, args) -> None:
    config, count, there = model.config, len(model.model.layers), linears(model)
    if missing := [name for name in KNOWN if f"model.layers.0.{name}" not in there]:
        raise ValueError(f"train.method: a {type(model).__name__} has no {missing[0]}, which width cuts. Choose depth.")
    if args.keep_kv_heads:
        if not 1 <= args.keep_kv_heads <= config.num_key_value_heads:
            raise ValueError(f"train.keep_kv_heads: must be from 1 to {config.num_key_value_heads}, the base's.")
        scores = [_of(model, seen, i, "self_attn.o_proj") for i in range(count)]
        heads = [s.square().reshape(config.num_key_value_heads, -1).sum(1) for s in scores]
        surgery.kv_heads(model, [greatest(s, args.keep_kv_heads) for s in heads])
    if args.keep_channels:
        if not 1 <= args.keep_channels <= config.intermediate_size:
            raise ValueError(f"train.keep_channels: must be from 1 to {config.intermediate_size}, the base's.")
        scores = [_of(model, seen, i, "mlp.down_proj") for i in range(count)]
        surgery.channels(model, [greatest(s, args.keep_channels) for s in scores])


def _of(model, seen: Seen, layer: int, name: str):
    weight_OI = model.model.layers[layer].get_submodule(name).weight.data
    return columns(weight_OI, seen.norms[f"model.layers.{layer}.{name}"])


def _depth(model, seen, args) -> None:
    import torch

    if not 1 <= args.keep_layers <= len(seen.influence):
        raise ValueError(f"train.keep_layers: must be from 1 to {len(seen.influence)}, the base's.")
    surgery.layers(model, greatest(torch.tensor(seen.influence), args.keep_layers))


def greatest(score, count: int) -> list[int]:
    """Places of the `count` greatest, in order. Of equal ones, the first."""
    return sorted(score.argsort(descending=True, stable=True)[:count].tolist())


METHODS = {
    "magnitude": Method("the smallest weights become 0", _magnitude, ("sparsity", "pattern"), reads=False, sparse=True),
    "wanda": Method("the weights that add least become 0", _wanda, ("sparsity", "pattern"), sparse=True),
    "width": Method(
        "MLP channels and key-value heads that add least are taken out", _width, ("keep_channels", "keep_kv_heads")
    ),
    "depth": Method("layers that change least are taken out", _depth, ("keep_layers",)),
}


def check(job, args) -> None:
    """Raises ValueError that names the key of `train`. args: has the fields of PruneConfig."""
    method = METHODS[args.method]
    if job.model.adapter != "none":
        raise ValueError("model.adapter: an adapter can't heal what is taken away. Set model.adapter: none.")
    if method.sparse and job.scale.strategy != "ddp":
        raise ValueError(
            f"scale.strategy: zeros are held in whole weights, which {job.scale.strategy} cuts. Use ddp, or train.method: width."
        )
    for key in sorted({key for m in METHODS.values() for key in m.takes} - set(method.takes)):
        if getattr(args, key) is not None:
            takers = " or ".join(name for name, m in METHODS.items() if key in m.takes)
            raise ValueError(
                f"train.{key}: {args.method} doesn't take it. Set train.method: {takers}, or leave it out."
            )
    if all(getattr(args, key) is None for key in method.takes):
        raise ValueError(f"train.{method.takes[0]}: say how much {args.method} takes away or leaves.")
    if args.sparsity is not None and args.pattern:
        raise ValueError("train.pattern: says how many weights stay, and so does train.sparsity. Set one of them.")
    if args.sparsity is not None and not 0 < args.sparsity < 1:
        raise ValueError(f"train.sparsity: must be above 0 and below 1, is {args.sparsity}.")
    if args.pattern:
        found = re.fullmatch(r"(\d+):(\d+)", args.pattern)
        if not found or not 0 < int(found[1]) < int(found[2]):
            raise ValueError(f"train.pattern: must be N:M with N below M, such as 2:4, is {args.pattern!r}.")
    for key in ("keep_channels", "keep_kv_heads", "keep_layers", "calibration_rows"):
        if (value := getattr(args, key)) is not None and value < 1:
            raise ValueError(f"train.{key}: must be 1 or more, is {value}.")
