"""Linear layers computed by oneDNN give the same results as PyTorch's own."""

import pytest
import torch

from lib.models import cpu_linear


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
def test_the_same_up_to_rounding_and_other_layers_are_left_alone(monkeypatch):
    monkeypatch.setattr(cpu_linear, "intel", lambda: False)

    class Other(torch.nn.Linear):
        pass

    torch.manual_seed(0)
    plain, other = torch.nn.Linear(576, 1536), Other(576, 8)
    half, unbiased = torch.nn.Linear(576, 8, dtype=torch.bfloat16), torch.nn.Linear(576, 64, bias=False)
    packed = torch.nn.Linear(576, 8)
    del packed.weight
    layers = [plain, other, half, packed, unbiased]
    cpu_linear.install(torch.nn.ModuleList(layers))
    assert [("forward" in vars(m)) for m in layers] == [True, False, False, False, True]
    with torch.inference_mode():
        for shape in ((1, 576), (2, 3, 576), (1, 576, 64), (0, 576)):
            x = torch.randn(shape)
            x = x.transpose(1, 2) if shape[-1] == 64 else x  # the memory layout after attention
            for m in (plain, unbiased):
                torch.testing.assert_close(m(x), torch.nn.functional.linear(x, m.weight, m.bias), rtol=1e-4, atol=1e-5)
