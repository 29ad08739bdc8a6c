"""Measures how much the parts of a model contribute, on calibration rows.

    norms       ‖X_j‖ = sqrt(mean over tokens of x_j²) of every input j of every linear layer
    influence   1 − mean over tokens of cos(a layer's input, its output): a layer of influence 0 changes only lengths
                (Men et al. 2024, https://arxiv.org/abs/2403.03853, eq. 1)

Shapes: T tokens, H hidden, O outputs and I inputs of a linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Seen:
    norms: dict[str, object]
    """{name of a linear layer: (I,) float32}"""
    influence: list[float]
    """One number per decoder layer."""


def seen(model, rows: list[list[int]]) -> Seen:
    """Runs the model on `rows` (token ids) and returns the measurements. One row at a time, so that there is no padding to exclude."""
    import torch

    linear = linears(model)
    sums = {name: torch.zeros(module.in_features, device=module.weight.device) for name, module in linear.items()}
    cosines, tokens = [0.0] * len(model.model.layers), 0

    def adds(name):
        def hook(module, args):
            sums[name] += args[0].float().square().flatten(0, -2).sum(0)

        return hook

    def compares(i):
        def hook(module, args, kwargs, output):
            before_TH = (args[0] if args else kwargs["hidden_states"]).float()
            cosines[i] += torch.cosine_similarity(before_TH, output.float(), dim=-1).sum().item()

        return hook

    hooks = [module.register_forward_pre_hook(adds(name)) for name, module in linear.items()]
    hooks += [m.register_forward_hook(compares(i), with_kwargs=True) for i, m in enumerate(model.model.layers)]
    model.eval()
    with torch.inference_mode():
        for row in rows:
            model(input_ids=torch.tensor([row], device=model.device), use_cache=False, logits_to_keep=1)
            tokens += len(row)
    for hook in hooks:
        hook.remove()
    return Seen({n: (s / tokens).sqrt() for n, s in sums.items()}, [1 - c / tokens for c in cosines])


def linears(model) -> dict:
    """Returns {name: module} of the linear layers, except the output layer, whose weights many models share with the embedding."""
    import torch

    output = model.get_output_embeddings()
    return {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not output}


def columns(weight_OI, norm_I):
    """Returns (I,): ‖X_j‖ · ‖W_:,j‖, how much each input adds to the outputs. For an MLP's down projection it is the channels' importance
    (activation times weight, as in Muralidharan et al. 2024, https://arxiv.org/abs/2407.14679, section 2.2)."""
    return norm_I * weight_OI.float().norm(dim=0)
