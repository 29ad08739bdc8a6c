"""Linear layers by oneDNN, for models on a CPU in float32 that aren't trained.

PyTorch multiplies float32 matrices by MKL there, which on AMD keeps to half as wide vectors as the machine has: on an EPYC with
AVX-512 oneDNN, which PyTorch brings too, takes 1/2.3 of the time (5.4 against 2.3 ms). The same up to rounding. On Intel MKL is
the faster one by some 10%, and stays.

    export OMP_NUM_THREADS=1 SETUP="import torch; x, w = torch.randn(320, 576), torch.randn(1536, 576)"
    python -m timeit -s "$SETUP" "torch.nn.functional.linear(x, w)"
    python -m timeit -s "$SETUP" "torch.ops.mkldnn._linear_pointwise(x, w, None, 'none', [], '')"
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

FEW = 3
"""Rows; with fewer MKL is as fast."""


def intel() -> bool:
    """Whether the processor is Intel's own, as Linux says; False where it doesn't."""
    with suppress(OSError):
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    return False


def install(model) -> None:
    """Switches the model's plain linear layers over; those of other types (quantised, with adapters) are left as they are."""
    import torch

    if not torch.backends.mkldnn.is_available() or intel():
        return
    for module in model.modules():
        # Of a quantised layer the type is the same, and its weights are another kind of tensor, or packed until they are read.
        if type(module) is not torch.nn.Linear or "forward" in vars(module):
            continue
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if type(weight) is torch.nn.Parameter and weight.dtype == torch.float32 and weight.device.type == "cpu":
            module.forward = forward.__get__(module)


def forward(self, x):
    """x (…, in) → (…, out). Has no gradient."""
    import torch

    if x.numel() < FEW * x.shape[-1]:
        return torch.nn.functional.linear(x, self.weight, self.bias)
    return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
