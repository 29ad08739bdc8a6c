"""GRPO and PPO teach a tiny model more than its SFT did: to sort four digits, rewarded only by the share of right answers."""

import itertools
import json
import random

import pytest
import torch

from lib.evals.statistics.intervals import proportion
from tests.conftest import CHATML
from tests.methods import as_worker
from tests.methods.rewarded import logged

HELDOUT = 400


def rows() -> list[dict]:
    """Returns all lists of four digits from 0 to 5, and what they are when sorted, in a random order."""
    found = [
        {"question": " ".join(digits), "answer": " ".join(sorted(digits))}
        for digits in itertools.product("012345", repeat=4)
    ]
    random.Random(0).shuffle(found)
    return found


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> dict[str, str]:
    """Returns {"base": a model that was taught to sort, but not to the end, "train", "heldout": files of rows}."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("sorting")
    words = ["<|pad|>", "<|im_start|>", "<|im_end|>", "\n", " ", "user", "assistant", "system", *"012345"]
    parts = pre_tokenizers.Split(" ", "isolated")
    bpe = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<|pad|>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([parts, pre_tokenizers.Split("\n", "isolated")])
    bpe.decoder = decoders.Fuse()
    tok = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    tok.chat_template = CHATML
    found = rows()
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(words), max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, **shape
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    turns = [
        [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        for row in found[HELDOUT:]
    ]
    text = [tok.apply_chat_template(t, tokenize=False) for t in turns]
    ids = tok(text, return_tensors="pt", add_special_tokens=False)["input_ids"]  # all of one length
    for step in range(110):
        some = random.Random(step).sample(range(len(ids)), 64)
        model(input_ids=ids[some], labels=ids[some]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "base")
    tok.save_pretrained(folder / "base")
    for name, part in (("heldout", found[:HELDOUT]), ("train", found[HELDOUT:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return {name: str(folder / name) for name in ("base", "train.jsonl", "heldout.jsonl")}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_more_answers_are_right_than_before_with_intervals_apart(stage, taught, tmp_path):
    """On held-out lists, and within a minute."""
    train = {
        "max_completion_length": 10, "logging_steps": 10, "eval_on_start": "true", "seed": 0, "lr_scheduler_type": "constant",
        "learning_rate": 1e-3, "num_iterations": 2, "save_steps": 1000, "max_steps": 120,
    }  # fmt: skip
    own = {"grpo": {"num_generations": 8, "gradient_checkpointing": "false"}, "ppo": {"kl_coef": 0.01}}
    given = {
        "run": tmp_path / "run", "model.base": taught["base"], "data.source": taught["train.jsonl"], "data.heldout": taught["heldout.jsonl"],
        "rewards.reference": 1, "scale.global_batch": 128, "scale.micro_batch": 64, "scale.precision": "fp32",
    } | {f"train.{k}": v for k, v in (train | own[stage]).items()}  # fmt: skip
    trainer = as_worker.built(stage, [t for k, v in given.items() for t in (f"--{k}", str(v))], str(tmp_path))
    trainer.train()
    trainer.evaluate()
    right = [round(share * len(trainer.eval_dataset)) for share in logged(trainer, "eval_reward")]
    before, after = (proportion([1.0] * n + [0.0] * (len(trainer.eval_dataset) - n)) for n in right)
    assert before.high < after.low, (before, after)
