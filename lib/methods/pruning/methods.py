"""The pruning methods: one function each, which changes the model in place.

    magnitude   the smallest weights |W_ij| become 0, a share of every matrix
                Han et al. 2015, https://arxiv.org/abs/1506.02626
    wanda       the weights of the least |W_ij| · ‖X_j‖ become 0, a share of every row
                Sun et al. 2023, https://arxiv.org/abs/2306.11695
    width       the MLP channels and key-value heads (with their query heads) of the least ‖X_j‖ · ‖W_:,j‖ are removed, equally
                many from every layer
                Muralidharan et al. 2024, https://arxiv.org/abs/2407.14679
    depth       the layers of the least influence are removed
                Men et al. 2024, https://arxiv.org/abs/2403.03853

magnitude and wanda keep the shapes: they save nothing without kernels or files for sparse matrices, such as 2:4 on NVIDIA GPUs
since Ampere (Mishra et al. 2021, https://arxiv.org/abs/2104.08378). width and depth give a smaller model of the same kind.

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
    """(model, measured importance or None, args with the fields of PruneConfig) → None; changes the model in place."""
    takes: tuple[str, ...]
    """The fields of PruneConfig that set how much is pruned; one of them is required."""
    reads: bool = True
    """Whether it needs calibration rows."""
    sparse: bool = False
    """Whether it leaves zeros, which must stay zeros during healing."""


def smallest(score_OI, sparsity: float, per_row: bool):
    """Returns (O, I) bool: True at the share `sparsity` of the smallest scores, of the matrix or of each row; the first of equal ones."""
    import torch

    flat = score_OI if per_row else score_OI.reshape(1, -1)
    least = flat.argsort(dim=1, stable=True)[:, : round(sparsity * flat.shape[1])]
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, least, True).reshape(score_OI.shape)


def outside(score_OI, pattern: str):
    """Returns (O, I) bool: True for all but the N greatest scores of each M consecutive inputs. pattern: "N:M". Raises ValueError
    if M doesn't divide I."""
    import torch

    n, m = map(int, pattern.split(":"))
    if score_OI.shape[1] % m:
        raise ValueError(f"train.pattern: a layer has {score_OI.shape[1]} inputs, which {m} doesn't divide.")
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
        raise ValueError(
            f"train.method: a {type(model).__name__} has no {missing[0]}, which width needs. Choose depth."
        )
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
    """Returns the places of the `count` greatest scores, ascending; the first of equal ones."""
    return sorted(score.argsort(descending=True, stable=True)[:count].tolist())


METHODS = {
    "magnitude": Method("the smallest weights become 0", _magnitude, ("sparsity", "pattern"), reads=False, sparse=True),
    "wanda": Method("the weights that contribute least become 0", _wanda, ("sparsity", "pattern"), sparse=True),
    "width": Method(
        "MLP channels and key-value heads that contribute least are removed", _width, ("keep_channels", "keep_kv_heads")
    ),
    "depth": Method("the layers that change their input least are removed", _depth, ("keep_layers",)),
}


def check(job, args) -> None:
    """Checks a job. Raises ValueError that names the key at fault. args: an object with the fields of PruneConfig."""
    method = METHODS[args.method]
    if job.model.adapter != "none":
        raise ValueError("model.adapter: an adapter can't heal a pruned model. Set model.adapter: none.")
    if method.sparse and job.scale.strategy != "ddp":
        raise ValueError(
            f"scale.strategy: zeros can only be kept in unsharded weights, and {job.scale.strategy} shards them. Use ddp, or train.method: width."
        )
    for key in sorted({key for m in METHODS.values() for key in m.takes} - set(method.takes)):
        if getattr(args, key) is not None:
            takers = " or ".join(name for name, m in METHODS.items() if key in m.takes)
            raise ValueError(
                f"train.{key}: {args.method} doesn't take it. Set train.method: {takers}, or leave it out."
            )
    if all(getattr(args, key) is None for key in method.takes):
        raise ValueError(f"train.{method.takes[0]}: set how much {args.method} removes or keeps.")
    if args.sparsity is not None and args.pattern:
        raise ValueError(
            "train.pattern: conflicts with train.sparsity, since both set how many weights stay. Set one of them."
        )
    if args.sparsity is not None and not 0 < args.sparsity < 1:
        raise ValueError(f"train.sparsity: must be above 0 and below 1, is {args.sparsity}.")
    if args.pattern:
        found = re.fullmatch(r"(\d+):(\d+)", args.pattern)
        if not found or not 0 < int(found[1]) < int(found[2]):
            raise ValueError(f"train.pattern: must be N:M with N below M, such as 2:4, is {args.pattern!r}.")
    for key in ("keep_channels", "keep_kv_heads", "keep_layers", "calibration_rows"):
        if (value := getattr(args, key)) is not None and value < 1:
            raise ValueError(f"train.{key}: must be 1 or more, is {value}.")
