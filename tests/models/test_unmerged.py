"""Adapters that can't be merged: their formulas, the model that is loaded with and without a cache, and what is refused."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, GPT2Config, GPT2LMHeadModel

from cluster.estimate.anatomy import study
from lib.config.adapters import ADAPTERS
from lib.config.job import Model
from lib.errors import UsageError
from lib.generation.kv_cache import Cached
from lib.models import added, bottleneck, locate, unmerged
from lib.run import Run
from lib.runtime import manifest
from tests import stages

UNMERGED = [name for name, adapter in ADAPTERS.items() if not adapter.merges]
SMALL = {"prefix": {"num_virtual_tokens": 3}, "houlsby": {"r": 4}, "pfeiffer": {"r": 4}}
ROWS = [[5, 6, 7, 8, 9], [10, 11, 12]]


def installed(base: str, adapter: str, drawn: bool = True, **given):
    """drawn: with weights far from those that training starts from."""
    model = AutoModelForCausalLM.from_pretrained(base)
    added.install(model, adapter, added.config(adapter, SMALL[adapter] | given))
    torch.manual_seed(1)
    for p in model.parameters():
        if drawn and p.requires_grad:
            torch.nn.init.normal_(p, std=0.5)
    return model


def write(tiny_model, adapter, tmp_path):
    """Writes model/ of a run with drawn weights. Returns (the folder, the model in memory)."""
    model = installed(tiny_model, adapter)
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / added.WEIGHTS).rename(tmp_path / "adapter" / unmerged.FILE)
    unmerged.write(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "adapter", tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model"), model


@pytest.fixture(params=UNMERGED)
def written(request, tiny_model, tmp_path):
    return write(tiny_model, request.param, tmp_path)


def test_a_bottleneck_adds_the_formula():
    config = bottleneck.BottleneckConfig(r=1, nonlinearity="relu")
    made = bottleneck.Bottleneck(torch.zeros(1), 2, config, torch.Generator().manual_seed(0))
    y = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    assert torch.equal(made(y), y)
    with torch.no_grad():
        for p, value in ((made.down.weight, 3.0), (made.down.bias, 1.0), (made.up.weight, 2.0), (made.up.bias, 0.5)):
            p.fill_(value)
    assert torch.equal(made(y), y + 0.5 + torch.tensor([[2 * 10.0], [0.0]]))


@pytest.mark.parametrize(("adapter", "number"), [("houlsby", 2), ("pfeiffer", 1)])
def test_bottlenecks_are_where_the_paper_has_them_and_start_from_the_base(adapter, number, tiny_model):
    ids, base = torch.tensor(ROWS[:1]), AutoModelForCausalLM.from_pretrained(tiny_model)
    model = installed(tiny_model, adapter, drawn=False)
    assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)
    block, plain = model.model.layers[0], base.model.layers[0]
    parts = [m for m in model.modules() if isinstance(m, bottleneck.Bottleneck)]
    assert len(parts) == number * 2 and hasattr(block.self_attn, "bottleneck") == (number == 2)
    for part in parts:
        torch.nn.init.normal_(part.up.weight)
    x, where = torch.randn(1, 4, 64), model.model.rotary_emb(torch.zeros(1, 4, 64), torch.arange(4)[None])
    after = lambda sub, y: sub.bottleneck(y) if hasattr(sub, "bottleneck") else y  # noqa: E731
    attended = plain.self_attn(plain.input_layernorm(x), position_embeddings=where, attention_mask=None)[0]
    x1 = x + after(block.self_attn, attended)
    wanted = x1 + after(block.mlp, plain.mlp(plain.post_attention_layernorm(x1)))
    assert torch.allclose(block(x, position_embeddings=where), wanted, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right", "none"])
def test_a_prefix_is_read_like_keys_and_values_in_front_of_the_rows(side, tiny_model):
    """Compared with transformers' own cache, filled with the prefix."""
    model, base = installed(tiny_model, "prefix"), AutoModelForCausalLM.from_pretrained(tiny_model)
    rows = ROWS[:1] * 2 if side == "none" else ROWS
    pad = [[0] * (5 - len(r)) for r in rows]
    ids = torch.tensor([p + r if side == "left" else r + p for r, p in zip(rows, pad, strict=True)])
    mask = torch.tensor([len(p) * [0] + len(r) * [1] if side == "left" else len(r) * [1] + len(p) * [0] for r, p in zip(rows, pad, strict=True)])  # fmt: skip
    at = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache()
    for n, layer in enumerate(model.model.layers):
        cache.update(*(p.expand(2, -1, -1, -1) for p in layer.self_attn.prefix()), n)
    whole = torch.cat([torch.ones(2, 3, dtype=torch.long), mask], 1)
    wanted = base(input_ids=ids, attention_mask=whole, position_ids=at, past_key_values=cache).logits
    made = model(input_ids=ids, attention_mask=None if side == "none" else mask, position_ids=at).logits
    assert torch.allclose(made[mask.bool()], wanted[mask.bool()], atol=1e-5)
    assert not torch.allclose(made, base(input_ids=ids, attention_mask=mask, position_ids=at).logits, atol=1e-2)


def test_conversations_packed_into_a_row_each_read_the_prefix_and_not_each_other(tiny_model):
    model, (first, second) = installed(tiny_model, "prefix"), ROWS
    at = torch.tensor([[*range(len(first)), *range(len(second))]])
    packed = model(input_ids=torch.tensor([first + second]), position_ids=at, use_cache=False).logits
    alone = [model(input_ids=torch.tensor([row])).logits for row in ROWS]
    assert torch.allclose(packed, torch.cat(alone, 1), atol=1e-5)


def test_what_the_network_of_a_prefix_made_is_all_that_is_kept(tiny_model, tmp_path):
    model = installed(tiny_model, "prefix", prefix_projection=True, encoder_hidden_size=8)
    ids, before = torch.tensor(ROWS[:1]), sum(w.numel() for w in added.weights(model).values())
    assert before == 3 * 64 + 65 * 8 + 2 * (2 * 2 * 16) * 9
    said = model(input_ids=ids).logits
    added.settle(model)
    assert torch.equal(model(input_ids=ids).logits, said)
    assert {w.shape for w in added.weights(model).values()} == {(2, 3, 16)} and len(added.weights(model)) == 4
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["prefix_projection"] is False


@pytest.mark.parametrize("adapter", UNMERGED)
def test_gradient_checkpointing_changes_no_gradient(adapter, tiny_model):
    found = []
    for checkpointing in (False, True):
        network = {"prefix_projection": True, "encoder_hidden_size": 8}
        given = network if adapter == "prefix" else {"nonlinearity": "gelu"}  # relu is flat for half of all inputs
        model = installed(tiny_model, adapter, **given).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        ids = torch.tensor(ROWS[:1])
        model(input_ids=ids, labels=ids).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, g in found[0].items():
        assert g.abs().sum() > 0 and torch.allclose(g, found[1][name], atol=1e-6)


def test_what_is_loaded_is_what_was_written_with_and_without_a_cache(written):
    folder, model = written
    loaded = unmerged.load(AutoModelForCausalLM, folder)
    ids = torch.tensor(ROWS[:1])
    wanted = model(input_ids=ids).logits
    assert torch.equal(loaded(input_ids=ids).logits, wanted) and not any(p.requires_grad for p in loaded.parameters())
    read = Cached(loaded, [r[:2] for r in ROWS], 0, "cpu")
    for n in range(2, 5):
        assert torch.allclose(read.logits_BV[0], wanted[0, n - 1], atol=1e-4)
        read.feed(torch.tensor([[ROWS[0][n]], [7]]))
    with pytest.raises(OSError, match=r"model\.safetensors"):  # not the base alone
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_damaged_adapter_is_refused(tiny_model, tmp_path, written):
    folder, _ = written
    assert locate.kind(folder) == "adapter"
    config = tmp_path / "model/adapter/adapter_config.json"
    given = json.loads(config.read_text())
    size = "num_virtual_tokens" if given["peft_type"] == "PREFIX" else "r"
    for change, message in ({size: 2}, "holds other weights"), ({"peft_type": "HOULSBI"}, "Nearest: houlsby"):
        config.write_text(json.dumps(given | change))
        with pytest.raises(ValueError, match=message):
            unmerged.load(AutoModelForCausalLM, folder)


def test_the_plan_counts_what_trains(tiny_model):
    for adapter, wanted in (("prefix", 2 * 2 * 2 * 3 * 16), ("pfeiffer", 2 * (8 * 64 + 68)), ("houlsby", 4 * (8 * 64 + 68))):  # fmt: skip
        found = study(Model(tiny_model, adapter=adapter, peft=SMALL[adapter]), 32, False, "fp32", "adapter")
        assert (found.trainable, found.adapter, found.trainable_bytes) == (wanted, wanted, 4 * wanted)
        assert sum(p.numel() for p in installed(tiny_model, adapter).parameters() if p.requires_grad) == wanted
        assert found.head and found.sequence > 0


def test_what_cannot_be_is_refused(tiny_model, chats_file, pairs_file, tmp_path):
    for stage, given, message in [
        ("dpo", ["prefix"], "model.adapter: prefix trains with jobs/sft.py only"),
        ("reward", ["houlsby"], "model.adapter: houlsby trains with jobs/sft.py only"),
        ("sft", ["houlsby", "--model.peft.bottleneck", "4"], "model.peft.bottleneck"),
        ("sft", ["houlsby", "--model.peft.after_attention", "false"], "follows from model.adapter: houlsby"),
        ("sft", ["houlsby", "--model.peft.nonlinearity", "gelo"], "model.peft.nonlinearity"),
        ("sft", ["prefix", "--model.peft.num_virtual_token", "4"], "Nearest: --model.peft.num_virtual_tokens"),
        ("sft", ["prefix", "--model.peft.encoder_hidden_size", "4"], "is one of prefix_projection: true"),
        ("sft", ["prefix", "--model.attn_implementation", "flash_attention_2"], "prefix computes attention with sdpa"),
        ("sft", ["pfeiffer", "--model.quantization", "4bit"], "pfeiffer doesn't train on 4bit weights"),
        ("sft", ["houlsby", "--scale.workers", "2", "--scale.strategy", "fsdp"], "houlsby trains with strategy: ddp"),
    ]:  # fmt: skip
        source = chats_file if stage == "sft" else pairs_file
        argv = ["--model.base", tiny_model, "--data.source", source, "--run", str(tmp_path / "run")]
        with pytest.raises(UsageError) as refused:
            stages.planned(stage, [*argv, "--model.adapter", *given])
        assert message in str(refused.value)
    for adapter in UNMERGED:
        small = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9))
        with pytest.raises(ValueError, match=r"gpt2 hasn't\. Use model\.adapter: lora"):
            added.install(small, adapter, added.config(adapter, {}))


@pytest.mark.slow
def test_a_run_in_an_object_store_is_loaded_with_its_adapter(tiny_model, tmp_path, s3, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    folder, model = write(tiny_model, "houlsby", tmp_path)
    run, files = Run("s3://runs/houlsby"), manifest.hashes(tmp_path / "model")
    run.put(folder, "model")
    run.write_json("job.yaml", {"stage": "sft", "makes": "adapter", "model": {"base": tiny_model}})
    listed = {f"model/{name}": found for name, found in files.items()}
    run.write_json("provenance.json", {"status": "finished", "model_sha256": manifest.digest(files), "files": listed})
    where, _ = locate.locate(run.path)
    loaded = unmerged.load(AutoModelForCausalLM, locate.path(where))
    ids = torch.tensor(ROWS[:1])
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    with pytest.raises(ValueError, match="can't be merged"):
        locate.require("model.base", where)
