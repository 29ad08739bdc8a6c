"""Anatomy and footprint compared with real tensors, hand counts and the papers' own figures."""

from dataclasses import replace

import pytest

from cluster.estimate import anatomy, memory, throughput
from cluster.estimate.anatomy import Anatomy
from lib.config.job import Model
from tests.cluster import autograd

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))


def saved_for_real(net, batch: int, tokens: int, half: bool) -> int:
    """Returns the bytes that a forward pass actually keeps for the backward pass, without the weights."""
    import torch

    ids = torch.zeros(batch, tokens, dtype=torch.long)
    forward = lambda: getattr(net, net.base_model_prefix)(  # noqa: E731
        input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        return autograd.saved_bytes(forward, net.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_saved_bytes_are_those_of_real_tensors(tiny_model, precision, adapter):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from lib.models import load

    model = Model(base=tiny_model, adapter=adapter, peft=LORA if adapter == "lora" else {})
    a = anatomy.study(model, 24, False, precision)
    net = AutoModelForCausalLM.from_pretrained(
        tiny_model, dtype=getattr(torch, load.dtype(model, precision)), attn_implementation="eager"
    )
    if adapter == "lora":
        net = get_peft_model(net, LoraConfig(task_type="CAUSAL_LM", **LORA)).get_base_model()
        load.train_in_fp32(net)
    net.train()
    assert a.parameters == sum(p.numel() for p in net.parameters())
    assert a.trainable == sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert a.weight_bytes == sum(p.numel() * p.itemsize for p in net.parameters())
    for batch in (1, 3):
        assert a.copies + batch * a.sequence == saved_for_real(net, batch, 24, precision == "bf16")


def test_two_layers_tell_about_all(tiny_model, tmp_path):
    """A deeper model's bytes, extrapolated from its first two layers, equal those of all its layers."""
    import json
    import shutil

    from transformers import AutoConfig, AutoModelForCausalLM

    deep = tmp_path / "deep"
    shutil.copytree(tiny_model, deep)
    config = json.loads((deep / "config.json").read_text()) | {"num_hidden_layers": 5}
    config.pop("layer_types", None)
    (deep / "config.json").write_text(json.dumps(config))
    a = anatomy.study(Model(base=str(deep)), 16, False, "bf16")
    net = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(deep), attn_implementation="eager").train()
    assert (a.layers, a.parameters) == (5, sum(p.numel() for p in net.parameters()))
    assert a.copies + 2 * a.sequence == saved_for_real(net, 2, 16, True)


def test_counts_by_hand(tiny_model):
    """Width 64, 2 layers, 4 query and 2 key heads of 16, 128 MLP channels, 1,024 tokens, tied."""
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128
    a = anatomy.study(Model(base=tiny_model), 8, False, "fp32")
    assert a.multiplied == 2 * layer and a.head == 1024 * 64 and a.attention == 64 and a.head_trains
    assert a.parameters == a.trainable == 2 * (layer + 2 * 64) + 64 + 1024 * 64
    low = 4 * ((64 + 64) + (64 + 32) + (128 + 64))  # r × (in + out) of q, v and down
    b = anatomy.study(Model(base=tiny_model, adapter="lora", peft=LORA), 8, False, "bf16")
    assert b.trainable == b.adapter == 2 * low and b.trainable_bytes == 4 * b.trainable and not b.head_trains
    assert b.weight_bytes == 2 * a.parameters + 4 * b.trainable
    c = anatomy.study(Model(base=tiny_model, adapter="lora", peft=LORA, quantization="4bit"), 8, False, "bf16")
    assert b.weight_bytes - c.weight_bytes == pytest.approx(2 * layer * (2 - anatomy.NF4), abs=20)
    r = anatomy.study(Model(base=tiny_model), 8, False, "fp32", makes="reward")
    assert r.head == 0 and r.parameters == a.parameters + 64  # its scalar head


PAPER = Anatomy(
    parameters=7_500_000_000, trainable=7_500_000_000, weight_bytes=30_000_000_000, trainable_bytes=30_000_000_000,
    multiplied=7_500_000_000, adapter=0, head=0, head_trains=False, layers=40, hidden=4096, attention=4096, vocabulary=50_000,
    largest=0, copies=0, sequence=0, tokens=1024,
)  # fmt: skip


@pytest.mark.parametrize(("strategy", "gb"), [("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.9)])
def test_zero_is_that_of_the_paper(strategy, gb):
    """Rajbhandari et al. 2020, figure 1: 7.5 billion weights on 64 devices, mixed precision, Adam."""
    f = memory.footprint(PAPER, memory.Setting(True, "bf16", strategy, workers=64))
    states = f.parts["weights"] + f.parts["optimizer"] + f.parts["gradients"]
    assert states / 1e9 == pytest.approx(gb, abs=0.06)


def test_what_each_setting_saves():
    a = replace(PAPER, sequence=1_000_000_000)
    setting = memory.Setting(True, "bf16", sequences=8)
    total = lambda **k: memory.footprint(a, replace(setting, **k)).total  # noqa: E731
    activations = lambda **k: memory.footprint(a, replace(setting, accumulates=True, **k)).parts["activations"]  # noqa: E731
    assert activations() == 8_000_000_000 and activations(sequences=2) == 2_000_000_000
    # each layer's input in 16 bits, and one recomputed layer
    assert activations(checkpointing=True) == 40 * 8 * 1024 * 4096 * 2 + 8_000_000_000 // 40
    assert total(reference=30_000_000_000) > total() > total(optimizer="adamw_bnb_8bit") > total(optimizer="sgd")
    assert total(strategy="fsdp", workers=8) < total(strategy="ddp", workers=8)
    assert total(strategy="fsdp", workers=8, offload=True) < total(strategy="fsdp", workers=8)


def test_the_larger_moment_is_the_peak():
    few, many = (
        memory.footprint(replace(PAPER, sequence=s), memory.Setting(True, "bf16", sequences=1)) for s in (1, 10**11)
    )
    assert (few.moment, many.moment) == ("step", "backward")
    assert few.parts["gradients"] == 30_000_000_000 and "gradients" not in many.parts


def test_operations_by_hand():
    a = replace(PAPER, multiplied=1000, layers=2, attention=10, head=500, head_trains=True)
    layers, head = 2 * 1000 + 4 * 2 * 100 * 10, 2 * 500 * 0.5
    full = throughput.per_token(a, 100, 0.5, False, False, 0)
    assert full == 3 * layers + 4 * head
    assert throughput.per_token(a, 100, 0.5, True, False, 0) == full + layers
    assert throughput.per_token(a, 100, 0.5, False, True, 70) == full + layers + head + 140
    low = replace(a, adapter=100, trainable=100, head_trains=False)
    assert throughput.per_token(low, 100, 0.5, False, False, 0) == 3 * layers - 2 * 900 + 3 * head
