"""Checks weights for NaN and infinity: such weights are neither kept as a checkpoint nor published."""

from __future__ import annotations

from pathlib import Path

from lib.runtime.failure import StopTraining

REMEDY = (
    "Lower train.learning_rate, set train.max_grad_norm or train.warmup_steps, or use scale.precision: fp32; checkpoints from "
    "before it are kept."
)


def parameters(model) -> str | None:
    """Returns the name of the first trained parameter that holds NaN or infinity, or None. Of sharded parameters, checks this process's
    shard."""
    import torch

    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        mine = p.ds_tensor if hasattr(p, "ds_tensor") else p.to_local() if hasattr(p, "to_local") else p
        if mine.is_floating_point() and not torch.isfinite(mine).all():
            return name
    return None


def check_files(folder: Path) -> None:
    """Raises StopTraining, naming the tensor, if a safetensors file below `folder` holds NaN or infinity."""
    import torch
    from safetensors import safe_open

    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in sorted(tensors.keys()):
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
                    raise StopTraining(
                        f"{name} in {file.name} holds NaN or infinity, so model/ isn't published. {REMEDY}"
                    )
