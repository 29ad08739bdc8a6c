"""LoRA layers for training on a CPU with fewer passes over memory.

PEFT computes W x + s B A x as a product, a scaling and a sum of tensors as large as the output, and again in the backward pass:
with SmolLM2-135M this is a fifth of a training step. Here the second product is added directly to the first. Results are the
same up to rounding.

Shapes: N tokens, I and O channels in and out, R the adapter's rank.
"""

from __future__ import annotations

from functools import cache
from types import MethodType


@cache
def _adapted():
    import torch
    from torch.autograd import Function

    class Adapted(Function):
        """x (N, I), weight (O, I), bias (O) or None, a (R, I), b (O, R) → (N, O), all of one type."""

        @staticmethod
        def forward(ctx, x, weight, bias, a, b, scaling):
            ax = x @ a.t()
            out = torch.nn.functional.linear(x, weight, bias)
            ctx.save_for_backward(x, weight, a, b, ax)
            ctx.scaling = scaling
            return out.addmm_(ax, b.t(), alpha=scaling)

        @staticmethod
        def backward(ctx, grad):
            x, weight, a, b, ax = ctx.saved_tensors
            grad_ax = (grad @ b).mul_(ctx.scaling)
            grad_x = (grad @ weight).addmm_(grad_ax, a) if ctx.needs_input_grad[0] else None
            grad_b = (grad.t() @ ax).mul_(ctx.scaling)
            return grad_x, None, None, grad_ax.t() @ x, grad_b, None

    return Adapted.apply


def forward(self, x, *args, **kwargs):
    """x (…, I) → (…, O). Replaces peft.tuners.lora.Linear.forward, which it calls unless exactly the one plain adapter is active."""
    import torch

    if self.disable_adapters or self.merged or args or kwargs or self.active_adapters != [self.alone]:
        return type(self).forward(self, x, *args, **kwargs)
    base = self.base_layer
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else base.weight.dtype
    a, b = self.lora_A[self.alone].weight, self.lora_B[self.alone].weight
    with torch.autocast("cpu", enabled=False):
        out = _adapted()(
            x.reshape(-1, x.shape[-1]).to(kind),
            base.weight.to(kind),
            None if base.bias is None else base.bias.to(kind),
            a.to(kind),
            b.to(kind),
            self.scaling[self.alone],
        )
    return out.view(*x.shape[:-1], -1)


def install(model) -> int:
    """Replaces forward of the LoRA layers in `model` that have one plain adapter without dropout on a frozen linear layer on the
    CPU; leaves the others unchanged. Returns the number of replaced layers."""
    import torch
    from peft.tuners.lora import Linear

    found = 0
    for layer in model.modules():
        if type(layer) is not Linear or type(layer.base_layer) is not torch.nn.Linear or len(layer.lora_A) != 1:
            continue
        name = next(iter(layer.lora_A))
        plain = name not in layer.lora_variant and not layer.lora_bias[name] and not layer.fan_in_fan_out
        weight = layer.base_layer.weight
        still = isinstance(layer.lora_dropout[name], torch.nn.Identity) and not weight.requires_grad
        if (
            plain
            and still
            and type(weight) is torch.nn.Parameter
            and weight.device.type == "cpu"
            and weight.dtype.is_floating_point
        ):
            layer.alone = name
            layer.forward = MethodType(forward, layer)
            found += 1
    return found
