"""A model of 64 positions: nothing silently reads beyond them."""

import json
import shutil
from pathlib import Path

import pytest

from lib.config.job import Data, Job, Model, Scale
from lib.generation.reward_model import RewardModel
from lib.generation.sampling import Sampling
from lib.generation.transformers_generator import TransformersGenerator
from lib.models import window
from lib.stage.training_arguments import arguments
from tests.stages import built

LONG = "the red lamp is near the small door. "
"""9 words and more tokens."""


@pytest.fixture(scope="module")
def narrow(tiny_model, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("narrow") / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    return str(folder)


def plain(generator, tokens: int) -> tuple[int, ...]:
    """Returns a prompt with this many tokens."""
    return tuple(generator.encoder.bare(LONG * 20)[:tokens])


@pytest.mark.parametrize("kind", sorted(window.AFTER_PADDING | {"bert", "electra", "distilbert"}))
def test_an_encoder_takes_as_many_tokens_as_it_has_positions_for(kind):
    """RoBERTa and its relatives have fewer than max_position_embeddings says."""
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = AutoConfig.for_model(kind, vocab_size=60, max_position_embeddings=34, pad_token_id=1, **sizes)
    if kind == "xmod":
        config.default_language = "en_XX"
    model = AutoModelForMaskedLM.from_config(config)
    most = window.positions(config)
    assert most == (32 if kind in window.AFTER_PADDING else 34)
    ids = torch.full((1, most + 1), 5)
    assert model(input_ids=ids[:, :-1], attention_mask=torch.ones_like(ids[:, :-1])).logits.shape[1] == most
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))


@pytest.mark.parametrize("how", [{}, {"draft": "lookup"}, {"beams": 2}, {"temperature": 1.0, "seed": 3}], ids=str)
def test_an_answer_ends_unfinished_where_the_positions_do(how, narrow, tiny_model):
    """The prompts before and after it get the same answers as from a model with more positions."""
    wide, model = TransformersGenerator(tiny_model), TransformersGenerator(narrow)
    for generator in (wide, model):
        generator.ends = {-1}  # so that no answer ends on its own
    prompts = [plain(model, n) for n in (10, 50, 63)]
    expected = [a[0].tokens for a in wide.generate(prompts, Sampling(max_new_tokens=20, **how))]
    answers = [a[0] for a in model.generate(prompts, Sampling(max_new_tokens=20, **how))]
    assert [len(a.tokens) for a in answers] == [20, 14, 1] and not any(a.finished for a in answers)
    if "beams" not in how:  # the best beam of 14 tokens is not a prefix of the best one of 20
        assert [a.tokens for a in answers] == [e[: len(a.tokens)] for a, e in zip(answers, expected, strict=True)]


def test_a_prompt_without_room_for_an_answer_is_refused(narrow):
    model = TransformersGenerator(narrow)
    with pytest.raises(
        ValueError, match=r"^2 of 3 prompts, .* have more tokens than the model has positions \(91 for 64\)"
    ):
        model.generate([plain(model, n) for n in (10, 64, 90)], Sampling(max_new_tokens=4))


def test_rows_longer_than_the_positions_are_not_scored(narrow):
    """64 tokens are read, and a 65th is predicted. A text is read in windows and may have any length."""
    model = TransformersGenerator(narrow)
    whole = plain(model, 66)
    fits = model.score([whole[:40], None], [whole[40:65], LONG * 20])
    assert fits[0].tokens == 25 and fits[1].tokens > 150
    with pytest.raises(
        ValueError, match=r"^1 of 2 rows to score have more tokens .* \(65 for 64\)\. Leave those rows out"
    ):
        model.score([whole[:40], whole[:40]], [whole[40:65], whole[40:]])


def test_conversations_longer_than_the_positions_get_no_reward(narrow, tmp_path):
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(narrow, num_labels=1).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(Path(narrow, name), tmp_path)
    model = RewardModel(str(tmp_path))
    short = [{"role": "user", "content": "red?"}, {"role": "assistant", "content": "red."}]
    assert len(model.reward([short])) == 1
    with pytest.raises(ValueError, match=r"^1 of 2 conversations have more tokens"):
        model.reward([short, [short[0], {"role": "assistant", "content": LONG * 9}]])


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ({}, r"rows, for train.teacher, have more tokens .* Set train.max_length: 64"),
        ({"max_length": 60, "on_policy": 0.5}, "prompts with train.answer_tokens have more tokens"),
    ],
)
def test_a_teacher_or_student_with_fewer_positions_than_a_row(train, says, narrow, tiny_model, chats_file, tmp_path):
    train = {"teacher": narrow, "max_length": 400, "save_strategy": "no"} | train
    job = Job("unused", "distill", Model(tiny_model), Data(chats_file, limit=8), train, Scale(precision="fp32"))
    args, _ = arguments(job, "lib.methods.distillation.trainer:DistillConfig", 1, str(tmp_path))
    with pytest.raises(ValueError, match=says):
        built(job, args)
