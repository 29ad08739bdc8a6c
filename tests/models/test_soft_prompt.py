"""A soft prompt as tokens of a plain model: in front of chats and texts, counted in max_length, never drawn, and a base like any other."""

import pytest
import torch
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.estimate.anatomy import study
from lib.config.job import Model
from lib.errors import UsageError
from lib.generation.sampling import Sampling
from lib.generation.transformers_generator import TransformersGenerator
from lib.models import export, soft_prompt, structure
from serve.by_transformers import application
from tests import stages
from tests.models.adapted import adapted
from tests.serve.test_by_transformers import ask

CHAT = [{"role": "user", "content": "hi"}]
TRAIN = {"max_steps": 1, "learning_rate": 0.02}


def exported(base, source, folder, **train):
    model = Model(base, adapter="prompt", peft={"num_virtual_tokens": 3})
    made = adapted("sft", model, source, folder, TRAIN | train)
    made.train()
    before = made.processing_class
    export.export(made, model, folder / "export")
    return made, before, folder / "export/model"


def test_its_tokens_begin_every_chat_and_text_and_no_answer_has_them(tiny_model, chats_file, tmp_path):
    made, before, folder = exported(tiny_model, chats_file, tmp_path)
    generator = TransformersGenerator(str(folder))
    encoder, new = (
        generator.encoder,
        generator.encoder.tokenizer.convert_tokens_to_ids([f"<|prompt_{k}|>" for k in range(3)]),
    )
    assert encoder.plain("a b") == [*new, *before("a b")["input_ids"]]
    assert encoder.render(CHAT, True) == [
        *new,
        *before.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"],
    ]
    assert encoder.text(encoder.plain("a b")) == "a b"

    # texts and chats are scored as the trained model, which has the vectors in front, scores them
    ids = torch.tensor([before("a b")["input_ids"]])
    with torch.no_grad():
        logits = made.model(input_ids=ids).logits[0, 2:-1]
    others = [v for v in range(logits.shape[1]) if v not in new]
    logits[:, new] = -torch.inf
    wanted = logits.log_softmax(-1).gather(1, ids.T).sum().item()
    assert (
        generator.score([None], ["a b"])[0].logprob == pytest.approx(wanted, abs=1e-4) and len(others) < logits.shape[1]
    )
    assert generator.score([""], ["a b"])[0].logprob == pytest.approx(wanted, abs=1e-4)

    # rows of the output layer that would always win
    with torch.no_grad():
        generator.model.lm_head.weight[new] = 0
        generator.model.lm_head.weight[new[0]] = 100 * generator.model.lm_head.weight[others].mean(0)
    for sampling in (Sampling(max_new_tokens=8), Sampling(max_new_tokens=8, temperature=1.0, n=8)):
        for answer in generator.generate([CHAT], sampling)[0]:
            assert not {*answer.tokens} & {*new}
    settings = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert settings.suppress_tokens == sorted(new)
    assert not (tmp_path / "export/adapter" / soft_prompt.ENCODER).exists()


def test_it_is_served_as_it_was_trained(tiny_model, chats_file, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():  # what is in front decides the answer
        for layer in base.model.layers:
            layer.self_attn.o_proj.weight *= 30
            layer.self_attn.v_proj.weight *= 30
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "base")
    _, _, folder = exported(str(tmp_path / "base"), chats_file, tmp_path, learning_rate=1.0)
    generator, greedy = TransformersGenerator(str(folder)), Sampling(max_new_tokens=8)
    chat, text = (generator.generate([p], greedy)[0][0].text for p in (CHAT, "red"))
    assert text != TransformersGenerator(str(tmp_path / "base")).generate(["red"], greedy)[0][0].text
    app = application(str(folder), "tiny", "float32", "cpu", None)
    same = {"model": str(folder), "max_tokens": 8, "temperature": 0}
    [reply] = ask(app, same | {"messages": CHAT})
    assert reply.json()["choices"][0]["message"]["content"] == chat
    [reply] = ask(app, same | {"prompt": "red"}, path="completions")
    assert reply.json()["choices"][0]["text"] == text


def test_the_model_is_a_base_for_another_prompt(tiny_model, chats_file, tmp_path):
    _, _, first = exported(tiny_model, chats_file, tmp_path / "one")
    _, _, second = exported(str(first), chats_file, tmp_path / "two")
    tokenizer = AutoTokenizer.from_pretrained(second)
    names = tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"][:6])
    assert names == [
        f"<|prompt_{k}|>" for k in (3, 4, 5, 0, 1, 2)
    ]  # the second prompt was trained in front of the first
    assert tokenizer.apply_chat_template(CHAT, tokenize=False).startswith("".join(names))


def test_it_comes_before_a_start_token(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    start = tokenizer.eos_token, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[start[0], "$A"], pair=[start[0], "$A", start[0], "$B:1"], special_tokens=[start]
    )
    made, new = soft_prompt.with_tokens(tokenizer, 2)
    assert made("a b")["input_ids"] == [*new, start[1], *tokenizer("a b", add_special_tokens=False)["input_ids"]]
    assert len(made("a", "b")["input_ids"]) == len(tokenizer("a", "b")["input_ids"]) + 2


def test_max_length_counts_it(tiny_model, chats_file, tmp_path):
    model = Model(tiny_model, adapter="prompt", peft={"num_virtual_tokens": 30})
    made = adapted("sft", model, chats_file, tmp_path, TRAIN | {"max_length": 90})
    assert max(len(row["input_ids"]) for row in made.train_dataset) == 60


@pytest.mark.parametrize(("adapter", "wanted"), [("prompt", 3 * 64), ("p_tuning", 3 * 64 + 3 * (64 * 64 + 64))])
def test_the_plan_counts_what_trains(adapter, wanted, tiny_model, chats_file, tmp_path):
    model = Model(tiny_model, adapter=adapter, peft={"num_virtual_tokens": 3})
    made = adapted("sft", model, chats_file, tmp_path, TRAIN)
    assert sum(p.numel() for p in made.model.parameters() if p.requires_grad) == wanted
    found = study(model, 32, False, "fp32")
    assert found.trainable == found.adapter == wanted and found.trainable_bytes == 4 * wanted
    lora = study(Model(tiny_model, adapter="lora", peft={"r": 1}), 32, False, "fp32")
    assert 0.5 < found.sequence / lora.sequence < 2  # gradients pass through all layers


def test_a_checkpoint_keeps_the_network_of_p_tuning(tiny_model, chats_file, tmp_path):
    made = adapted(
        "sft",
        Model(tiny_model, adapter="p_tuning", peft={"num_virtual_tokens": 3}),
        chats_file,
        tmp_path,
        TRAIN | {"save_steps": 1},
    )
    made.train()
    kept = load_file(tmp_path / "checkpoint-1" / soft_prompt.ENCODER)
    assert {"embedding.weight", "mlp_head.0.weight"} < {*kept}


def test_it_starts_as_a_text_of_the_base(tiny_model, chats_file, tmp_path):
    peft = {"num_virtual_tokens": 3, "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "red blue red blue"}
    made = adapted("sft", Model(tiny_model, adapter="prompt", peft=peft), chats_file, tmp_path, TRAIN)
    ids = made.processing_class("red blue red blue")["input_ids"][:3]
    assert torch.equal(made.model.get_prompt(1)[0], made.model.get_input_embeddings().weight[ids])
    argv = ["--model.base", tiny_model, "--data.source", chats_file, "--run", str(tmp_path / "run"), "--model.adapter"]
    text = [f"--model.peft.{key}={value}" for key, value in peft.items()]
    for given in (["prompt", *text], ["p_tuning"], ["adalora"]):
        assert structure.problems(stages.planned("sft", [*argv, *given]).job, False) == []


def test_what_cannot_be_is_refused(tiny_model, chats_file, pairs_file, tmp_path):
    for stage, given, message in [
        ("dpo", [], "model.adapter: prompt trains with jobs/sft.py only"),
        ("reward", [], "model.adapter: prompt trains with jobs/sft.py only"),
        ("sft", ["--train.packing", "true"], "train.packing: prompt needs each row by itself"),
        ("sft", ["--train.label_smoothing_factor", "0.1"], "train.label_smoothing_factor"),
        ("sft", ["--model.peft.prompt_tuning_init", "FOO"], "model.peft.prompt_tuning_init"),
        ("sft", ["--model.peft.prompt_tuning_init_text", "be brief"], "is one of prompt_tuning_init: TEXT"),
        ("sft", ["--model.adapter", "p_tuning", "--model.peft.encoder_dropout", "0.1"], "is one of encoder_reparameterization_type: LSTM"),
        ("sft", ["--model.quantization", "4bit"], "model.quantization: prompt doesn't train on 4bit weights"),
        ("sft", ["--model.peft.token_dim", "64"], "model.peft.token_dim: follows from model.base"),
        ("sft", ["--model.peft.num_virtual_token", "4"], "Nearest: --model.peft.num_virtual_tokens"),
        ("sft", ["--model.peft.num_virtual_tokens", "99", "--train.max_length", "100"], "leave no room for a row"),
        ("sft", ["--scale.workers", "2", "--scale.strategy", "fsdp"], "scale.strategy: prompt trains with strategy: ddp"),
        ("sft", ["--model.peft.num_virtual_tokens", "20", "--train.max_length", "85"], "and the prompt has 20"),
    ]:  # fmt: skip
        source = chats_file if stage == "sft" else pairs_file
        argv = ["--model.base", tiny_model, "--data.source", source, "--run", str(tmp_path / "run")]
        argv += [] if "--model.adapter" in given else ["--model.adapter", "prompt"]
        with pytest.raises(UsageError) as refused:
            stages.planned(stage, [*argv, *given])
        assert message in str(refused.value)
