"""lib/models/cpu_lora.py: outputs and gradients equal those of PEFT's own layers."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from lib.models import cpu_lora


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(24, 40), torch.nn.Linear(40, 8, bias=False)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def adapted(**settings):
    torch.manual_seed(0)
    config = LoraConfig(**{"r": 4, "lora_alpha": 10, "target_modules": ["first", "second"]} | settings)
    model = get_peft_model(Net(), config)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)  # as after some training, since PEFT starts with 0
    return model


@pytest.mark.parametrize(("kind", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_outputs_and_gradients_are_those_of_peft(kind, near):
    plain = adapted()
    quick = copy.deepcopy(plain)
    assert cpu_lora.install(quick) == 2
    results = []
    for model in (plain, quick):
        x = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
            out = model(x)
        out.float().square().sum().backward()
        results.append([out, x.grad, *(p.grad for p in model.parameters() if p.requires_grad)])
    assert len(results[0]) == 6
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).norm() <= near * a.norm()


def test_adapters_switched_off_and_merged():
    model = adapted()
    x = torch.randn(2, 24)
    cpu_lora.install(model)
    with model.disable_adapter():
        bare = model(x)
    torch.testing.assert_close(
        bare, model.get_base_model().second.base_layer(torch.tanh(model.get_base_model().first.base_layer(x)))
    )
    before = model(x)
    assert not torch.allclose(before, bare)
    torch.testing.assert_close(model.merge_and_unload()(x), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_other_adapters_are_left_alone(settings):
    assert cpu_lora.install(adapted(**settings)) == 0
