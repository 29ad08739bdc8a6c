"""Pruning: the parts that contribute least are removed, the rest computes the same, zeros stay zeros; and the job as a user runs it."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from lib.errors import UsageError
from lib.methods.pruning import methods, pruned
from lib.methods.pruning.importance import columns, linears, seen
from lib.models import surgery
from lib.run import Run
from tests.conftest import run_job
from tests.stages import planned

IDS = torch.arange(5, 85).reshape(2, 40)


def model(tiny_model: str, **shape) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(AutoConfig.from_pretrained(tiny_model, **shape)).eval()


def logits(m) -> torch.Tensor:
    with torch.inference_mode():
        return m(IDS).logits


def args(**given):
    fields = ("sparsity", "pattern", "keep_channels", "keep_kv_heads", "keep_layers")
    return SimpleNamespace(**dict.fromkeys(fields) | given)


def test_the_smallest_by_hand():
    score = torch.tensor([[1.0, 8.0, 3.0, 4.0], [5.0, 6.0, 7.0, 2.0]])
    assert methods.smallest(score, 0.5, per_row=False).tolist() == [[1, 0, 1, 1], [0, 0, 0, 1]]
    assert methods.smallest(score, 0.5, per_row=True).tolist() == [[1, 0, 1, 0], [1, 0, 0, 1]]
    assert methods.outside(score, "1:2").tolist() == [[1, 0, 1, 0], [1, 0, 0, 1]]
    assert methods.outside(score, "3:4").tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    with pytest.raises(ValueError, match=r"train.pattern: a layer has 4 inputs, which 3 doesn't divide"):
        methods.outside(score, "2:3")
    assert methods.greatest(torch.tensor([3.0, 9.0, 1.0, 9.0, 4.0]), 3) == [1, 3, 4]


def test_norms_and_influence_by_hand(tiny_model):
    """The norms are those of the layers' actual inputs; a layer that adds nothing has no influence."""
    m = model(tiny_model)
    with torch.no_grad():
        m.model.layers[1].self_attn.o_proj.weight.zero_()
        m.model.layers[1].mlp.down_proj.weight.zero_()
    inputs = []
    hook = m.model.layers[0].mlp.down_proj.register_forward_hook(lambda _, a, out: inputs.append(a[0][0]))
    found = seen(m, [[5, 6, 7], [8, 9]])
    hook.remove()
    want = torch.cat(inputs).square().mean(0).sqrt()
    torch.testing.assert_close(found.norms["model.layers.0.mlp.down_proj"], want)
    assert found.norms.keys() == linears(m).keys() and "lm_head" not in found.norms
    assert found.influence[1] == pytest.approx(0, abs=1e-6) and found.influence[0] > 0.01
    weight = torch.tensor([[3.0, 0.0], [4.0, 2.0]])
    assert columns(weight, torch.tensor([2.0, 10.0])).tolist() == [10.0, 20.0]


@pytest.mark.parametrize("pattern", [None, "2:4"])
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_every_linear_layer_loses_its_share(method, pattern, tiny_model):
    m = model(tiny_model)
    before = {n: x.weight.data.clone() for n, x in linears(m).items()}
    looked = seen(m, IDS.tolist())
    methods.METHODS[method].run(m, looked, args(sparsity=None if pattern else 0.25, pattern=pattern))
    for name, module in linears(m).items():
        w, gone = module.weight.data, module.weight.data == 0
        assert torch.equal(w[~gone], before[name][~gone])
        score = before[name].abs() * (looked.norms[name] if method == "wanda" else 1.0)
        if pattern:
            assert (gone.reshape(w.shape[0], -1, 4).sum(2) == 2).all()
        elif method == "wanda":  # a share of every row
            assert (gone.sum(1) == w.shape[1] // 4).all()
            assert (score.masked_fill(~gone, 0).amax(1) <= score.masked_fill(gone, torch.inf).amin(1)).all()
        else:
            assert gone.sum() == w.numel() // 4 and score[gone].max() <= score[~gone].min()
    assert torch.equal(m.get_output_embeddings().weight, model(tiny_model).get_output_embeddings().weight)


def test_parts_that_add_nothing_are_found_and_gone_without_a_change(tiny_model, tmp_path):
    """The removed channels and heads are those with zero weights, and the model that from_pretrained loads computes the same as
    the original."""
    m = model(tiny_model, num_attention_heads=8, num_key_value_heads=4, head_dim=16, num_hidden_layers=3)
    with torch.no_grad():
        for i, layer in enumerate(m.model.layers):
            layer.mlp.down_proj.weight[:, [i, 40, 127]] = 0
            for head in (i, (i + 2) % 4):  # each is used by two query heads
                layer.self_attn.o_proj.weight[:, head * 32 : head * 32 + 32] = 0
    whole, looked = logits(m), seen(m, IDS.tolist())
    methods.METHODS["width"].run(m, looked, args(keep_channels=125, keep_kv_heads=2))
    torch.testing.assert_close(logits(m), whole, atol=1e-6, rtol=0)
    m.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    c = again.config
    assert (c.intermediate_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim) == (125, 4, 2, 16)
    assert torch.equal(logits(again), logits(m))
    asked = dict(max_new_tokens=6, do_sample=False)
    assert torch.equal(again.generate(IDS, **asked), again.generate(IDS, use_cache=False, **asked))
    with pytest.raises(ValueError, match=r"train.keep_channels: must be from 1 to 125"):
        methods.METHODS["width"].run(m, looked, args(keep_channels=126))


def test_the_layer_without_influence_goes(tiny_model):
    m = model(tiny_model, num_hidden_layers=4)
    with torch.no_grad():
        m.model.layers[2].self_attn.o_proj.weight.zero_()
        m.model.layers[2].mlp.down_proj.weight.zero_()
    whole, kept = logits(m), [m.model.layers[i] for i in (0, 1, 3)]
    methods.METHODS["depth"].run(m, seen(m, IDS.tolist()), args(keep_layers=3))
    assert list(m.model.layers) == kept and m.config.num_hidden_layers == 3
    assert torch.equal(logits(m), whole)


def test_biases_go_with_their_outputs(tiny_model):
    m = model(tiny_model, attention_bias=True, mlp_bias=True)
    surgery.kv_heads(m, [[1], [0]])
    surgery.channels(m, [[0, 5, 9], [1, 2, 3]])
    attention = m.model.layers[0].self_attn
    assert attention.q_proj.bias.shape == (32,) and attention.k_proj.bias.shape == (16,)
    assert m.model.layers[0].mlp.up_proj.bias.shape == (3,) and m.model.layers[0].mlp.down_proj.bias.shape == (64,)
    assert logits(m).isfinite().all()


def test_zeros_are_held_by_adam_with_weight_decay(tiny_model):
    m = model(tiny_model)
    methods.METHODS["magnitude"].run(m, None, args(sparsity=0.5))
    masks = {n: x.weight.data == 0 for n, x in linears(m).items()}
    pruned.hold(m)
    optimizer = torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        m(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, module in linears(m).items():
        assert torch.equal(module.weight.data == 0, masks[name])


def words(tiny_model: str, run: Run, *more: str) -> list[str]:
    base = ["--model.base", tiny_model, "--train.teacher", tiny_model, "--run", run.path, "--data.limit", "32"]
    base += [
        "--data.heldout_limit",
        "8",
        "--train.max_length",
        "512",
        "--train.max_steps",
        "4",
        "--train.save_steps",
        "2",
    ]
    base += ["--train.logging_steps", "1", "--train.learning_rate", "1e-3", "--train.calibration_rows", "8"]
    return [*base, "--scale.global_batch", "4", "--scale.micro_batch", "2", "--scale.precision", "fp32", *more]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--train.method", "widht"], r"train.method.*width"),
        (["--train.keep_channel", "64"], r"train.keep_channel is not a key.*train.keep_channels"),
        ([], r"train.keep_channels: set how much width"),
        (["--train.sparsity", "0.5"], r"train.sparsity: width doesn't take it.*magnitude or wanda"),
        (["--train.method", "wanda", "--train.pattern", "4:2"], r"train.pattern: must be N:M"),
        (["--train.method", "wanda", "--train.pattern", "2:4", "--train.sparsity", "0.5"], r"train.pattern: .*Set one"),
        (["--train.method", "wanda", "--train.sparsity", "1"], r"train.sparsity: must be above 0 and below 1"),
        (["--train.keep_channels", "0"], r"train.keep_channels: must be 1 or more, is 0"),
        (["--train.keep_channels", "64", "--train.loss_type", "dft"], r"train.loss_type: distillation's loss is its own"),
        (["--train.keep_channels", "64", "--train.answer_temperature", "-1"], r"train.answer_temperature: must be 0 or"),
        (["--train.keep_channels", "64", "--model.adapter", "lora"], r"model.adapter: an adapter can't heal"),
        (["--train.method", "magnitude", "--train.sparsity", "0.5", "--scale.strategy", "fsdp", "--scale.workers", "2"], r"scale.strategy: zeros can only be kept"),
    ],
)  # fmt: skip
def test_wrong_requests(tiny_model, tmp_path, more, says):
    with pytest.raises(ValueError, match=says):
        planned("prune", words(tiny_model, Run(str(tmp_path / "run")), *more))


def test_without_held_out_rows_nothing_begins(tiny_model, chats_file, tmp_path):
    more = ["--train.keep_channels", "64", "--data.source", chats_file, "--data.heldout_fraction", "0"]
    with pytest.raises(UsageError, match="no held-out rows"):
        planned("prune", words(tiny_model, run := Run(str(tmp_path / "run")), *more))
    assert not run.exists()


def test_the_weights_of_a_hub_model_are_found(tiny_model, tmp_path, monkeypatch):
    """A hub model's weights are found by its name in the hub's own cache, as a run's are in its folder."""
    from lib.methods.compression import measure
    from lib.models import locate

    there = tmp_path / "models--a--b"
    (there / "refs").mkdir(parents=True)
    (there / "refs/main").write_text("c0ffee")
    shutil.copytree(tiny_model, there / "snapshots/c0ffee")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert locate.locate("a/b") == ("a/b", "hub:a/b@c0ffee")
    assert measure.weights(locate.snapshot("a/b")) == measure.weights(locate.snapshot(tiny_model)) > 0


@pytest.mark.slow
def test_a_job_that_lost_its_end_ends_with_the_same_weights_and_its_report(tiny_model, local_ray, tmp_path):
    more = ["--train.method", "wanda", "--train.pattern", "2:4", "--eval.tasks", '["perplexity"]', "--eval.limit", "8"]
    run = Run(str(tmp_path / "run"))
    done = run_job("prune", *words(tiny_model, run, *more), env=local_ray)
    assert done.returncode == 0, done.stdout + done.stderr
    start, end = (AutoModelForCausalLM.from_pretrained(run.at(f)) for f in ("pruned", "model"))
    for (name, a), b in zip(linears(start).items(), linears(end).values(), strict=True):
        gone = a.weight == 0
        assert torch.equal(gone, b.weight == 0) and not torch.equal(a.weight, b.weight), name
        assert (gone.reshape(gone.shape[0], -1, 4).sum(2) >= 2).all()
    text, whole = run.read_text("reports/prune.md"), run.provenance()["model_sha256"]
    assert (
        re.search(r"zeros in the linear layers' weights +\| +\| 50% ", text)
        and "tokens/s, 1 prompt" in text
        and "perplexity" in text
    )
    found = json.loads(run.read_text("reports/prune.json"))
    assert found["needs"]["prune"]["answering_bytes"] > 0 and found["comparisons"]
    for part in ("checkpoints/checkpoint-4", "model", "reports"):
        run.remove(part)
    run.write_json("provenance.json", run.provenance() | {"status": "running", "model_sha256": None})
    done = run_job("prune", "--resume", run.path, "--eval.tasks", "[]", env=local_ray)
    assert done.returncode == 0 and "from step 2" in done.stdout, done.stdout + done.stderr
    assert run.provenance()["model_sha256"] == whole and "tokens/s, 1 prompt" in run.read_text("reports/prune.md")
