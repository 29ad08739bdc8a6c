"""The parallel adapter equals further channels of the MLP: a literal one, biases, what it can't be added to, and what is counted."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from cluster.estimate.anatomy import study
from lib.config.job import Model
from lib.errors import UsageError
from lib.models import added, export, parallel, structure
from tests import stages
from tests.models.adapted import adapted

SHAPE = {"vocab_size": 30, "hidden_size": 8, "intermediate_size": 6, "num_attention_heads": 2, "num_hidden_layers": 2}


def test_it_adds_the_formula_and_starts_from_the_base():
    mlp = LlamaForCausalLM(LlamaConfig(**SHAPE)).model.layers[0].mlp
    x = torch.ones(1, 8) / 8
    before = mlp(x)
    channels = parallel.Channels(mlp, parallel.ParallelConfig(r=1, scaling=3.0), None)
    assert torch.equal(channels(x, torch.nn.functional.silu), torch.zeros(1, 8))
    with torch.no_grad():
        channels.gate_proj.weight.fill_(2.0)
        channels.up_proj.weight.fill_(5.0)
        channels.down_proj.weight.fill_(7.0)
    silu = 2 / (1 + torch.e**-2)
    assert torch.allclose(channels(x, torch.nn.functional.silu), torch.full((1, 8), 3 * 7 * silu * 5))
    assert torch.equal(mlp(x), before)


def test_it_is_merged_into_an_mlp_with_biases(tmp_path):
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SHAPE, mlp_bias=True))
    for p in base.parameters():
        torch.nn.init.normal_(p)
    base.save_pretrained(tmp_path / "base")
    trained = added.install(base, "parallel", parallel.ParallelConfig(r=3))
    for p in trained.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p)
    parallel.merge(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), trained, tmp_path / "wide")
    wide, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "wide"), torch.arange(10)[None]
    assert wide.config.intermediate_size == 9
    assert torch.allclose(wide(input_ids=ids).logits, trained(input_ids=ids).logits, atol=1e-3)


def test_a_checkpoint_and_adapter_hold_only_what_trains_and_the_plan_counts_it(tiny_model, chats_file, tmp_path):
    model = Model(tiny_model, adapter="parallel", peft={"r": 4})
    made = adapted("sft", model, chats_file, tmp_path, {"max_steps": 1, "save_steps": 1})
    wanted = sum(p.numel() for p in made.model.parameters() if p.requires_grad)
    layers, width = made.model.config.num_hidden_layers, made.model.config.hidden_size
    assert wanted == layers * 3 * 4 * width
    made.train()
    export.export(made, model, tmp_path / "export")
    for file in ("checkpoint-1/model.safetensors", "export/adapter/adapter_model.safetensors"):
        assert sum(w.numel() for w in load_file(tmp_path / file).values()) == wanted
    assert json.loads((tmp_path / "export/adapter/adapter_config.json").read_text())["r"] == 4
    found = study(model, 32, False, "fp32")
    assert found.trainable == found.adapter == wanted and found.trainable_bytes == 4 * wanted
    assert found.sequence > 0.5 * study(Model(tiny_model, adapter="lora"), 32, False, "fp32").sequence


def test_where_it_cannot_be_is_refused(tiny_model, chats_file, pairs_file, tmp_path):
    with pytest.raises(ValueError, match=r"needs an MLP with gate_proj, .*gpt2 hasn't. Use model.adapter: lora"):
        small = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9))
        added.install(small, "parallel", parallel.ParallelConfig())
    GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9).save_pretrained(tmp_path / "gpt2")
    argv = ["--model.base", tiny_model, "--data.source", chats_file, "--run", str(tmp_path / "run")]
    argv += ["--model.adapter", "parallel"]
    job = stages.planned("sft", argv).job
    assert structure.problems(job, False) == []
    job.model.base = str(tmp_path / "gpt2")
    [problem] = structure.problems(job, False)
    assert problem.startswith("model.adapter: parallel needs an MLP")
    for stage, given, message in [
        ("dpo", [], "model.adapter: parallel trains with jobs/sft.py only"),
        ("sft", ["--model.peft.rank", "4"], "Nearest"),
        ("sft", ["--model.peft.r", "0"], "model.peft.r: must be at least 1"),
        ("sft", ["--model.quantization", "4bit"], "parallel doesn't train on 4bit"),
        (
            "sft",
            ["--scale.workers", "2", "--scale.strategy", "fsdp"],
            "scale.strategy: parallel trains with strategy: ddp",
        ),
    ]:
        argv[3] = chats_file if stage == "sft" else pairs_file
        with pytest.raises(UsageError) as refused:
            stages.planned(stage, [*argv, *given])
        assert message in str(refused.value)
