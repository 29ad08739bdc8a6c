"""Linear layers computed by oneDNN, for inference in float32 on a CPU.

PyTorch multiplies float32 matrices with MKL, which on AMD uses vectors half as wide as the machine's. On an EPYC with AVX-512,
oneDNN, which PyTorch also includes, is 2.3 times as fast (2.3 instead of 5.4 ms), with the same results up to rounding. On Intel,
MKL is about 10% faster, so it is kept there.

    export OMP_NUM_THREADS=1 SETUP="import torch; x, w = torch.randn(320, 576), torch.randn(1536, 576)"
    python -m timeit -s "$SETUP" "torch.nn.functional.linear(x, w)"
    python -m timeit -s "$SETUP" "torch.ops.mkldnn._linear_pointwise(x, w, None, 'none', [], '')"
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

FEW = 3
"""Rows below which MKL is as fast."""


def intel() -> bool:
    """Whether /proc/cpuinfo names an Intel processor; False if it can't be read."""
    with suppress(OSError):
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    return False


def install(model) -> None:
    """Switches the model's plain linear layers to oneDNN; leaves other types (quantised, with adapters) unchanged."""
    import torch

    if not torch.backends.mkldnn.is_available() or intel():
        return
    for module in model.modules():
        # A quantised layer has the same type, but its weights are another kind of tensor, or packed until they are read.
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
