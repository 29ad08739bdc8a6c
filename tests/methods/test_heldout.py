"""The held-out loss and TRL's metrics don't depend on the micro-batch size or the number of workers, and have their stated meaning."""

import json
from itertools import chain
from pathlib import Path

import pytest

from lib.config.job import Data, Job, Model, Scale
from lib.methods import heldout
from lib.stage.training_arguments import arguments
from tests import stages

WORDS = ["red", "small river stone", "the lamp is red. " * 10, "salt", "the door", "bread and salt " * 5, "blue"]
"""Answers of 7 rows: only micro-batches of 1 and 7 divide them evenly."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """{kind: (file of training rows, file of held-out rows)}; the same answers to different prompts."""
    folder, found = tmp_path_factory.mktemp("heldout"), {}
    for kind in ("chats", "pairs"):
        found[kind] = tuple(str(folder / f"{kind}-{asked}.jsonl") for asked in ("what", "where"))
        for asked, file in zip(("what", "where"), found[kind], strict=True):
            made = []
            for i, (good, bad) in enumerate(zip(WORDS, WORDS[3:] + WORDS[:3], strict=True)):
                said = [{"role": "user", "content": f"{asked} is lamp {i}?"}, {"role": "assistant", "content": good}]
                pair = {"prompt": f"{asked} is lamp {i}?", "chosen": good, "rejected": bad}
                made.append(pair if kind == "pairs" else {"messages": said})
            Path(file).write_text("".join(json.dumps(r) + "\n" for r in made))
    return found


def trained(stage: str, model: str, files: tuple[str, str], folder, micro: int, **train):
    """Returns the stage's trainer as a worker builds it."""
    train = {
        "max_length": 200,
        "learning_rate": 1e-2,
        "max_steps": 1,
        "logging_steps": 1,
        "save_strategy": "no",
    } | train
    scale = Scale(global_batch=7, micro_batch=micro, precision="fp32")
    job = Job("unused", stage, Model(model), Data(files[0], heldout=files[1]), train, scale)
    args, _ = arguments(job, stages.stage(stage).config, 1, str(folder))
    trainer = stages.built(job, args)
    heldout.Heldout(trainer)
    return trainer


@pytest.mark.parametrize(("workers", "n"), [(1, 7), (2, 7), (2, 8), (4, 7), (4, 3), (3, 0)])
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_each_row_is_in_one_share_and_all_workers_have_as_many_passes(workers, n, batch):
    shards = [heldout.Shards(n, batch, w, workers) for w in range(workers)]
    counted = [b for w, s in enumerate(shards) for k, b in enumerate(s) if k < s.own or w == 0]
    assert sorted(chain(*counted)) == list(range(n))
    assert len({len(s) for s in shards}) == 1 and all(len(b) <= batch for s in shards for b in s)


@pytest.mark.parametrize("stage", ["sft", "distill"])
def test_a_held_out_loss_is_nats_by_tokens(stage, tiny_model, rows, tmp_path):
    import torch

    teacher = {"teacher": tiny_model, "hard_weight": 1.0} if stage == "distill" else {}
    found = {}
    for micro in (1, 2, 4, 7):
        trainer = trained(stage, tiny_model, rows["chats"], tmp_path, micro, **teacher)
        found[micro] = trainer.evaluate()
    model, nats, tokens = trainer.model.eval(), 0.0, 0
    for row in trainer.eval_dataset:
        batch = trainer.data_collator([row])
        with torch.no_grad():
            logp = model(batch["input_ids"]).logits[0, :-1].log_softmax(-1)
        labels = batch["labels"][0, 1:]
        at = labels != -100
        nats -= logp[at].gather(1, labels[at][:, None]).sum().item()
        tokens += at.sum().item()
    for metrics in found.values():
        assert metrics["eval_loss"] == pytest.approx(nats / tokens, rel=1e-6)
        for key in ("eval_mean_token_accuracy", "eval_entropy", "eval_hard_loss"):
            if key in found[7]:
                assert metrics[key] == pytest.approx(found[7][key], rel=1e-6)


@pytest.mark.parametrize(
    ("stage", "train"),
    [
        ("reward", {}),
        ("reward", {"center_rewards_coefficient": 0.1}),
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
        ("dpo", {"loss_type": "ipo"}),
        ("kto", {}),
        ("kto", {"loss_type": "apo_zero_unpaired"}),
        ("orpo", {"beta": 0.5}),
        ("simpo", {}),
        ("simpo", {"loss_type": "cpo"}),
    ],
)
def test_held_out_pairs_count_once_each(stage, train, tiny_model, rows, tmp_path):
    """A single batch of all pairs gives TRL's own number."""
    found = []
    for micro in (7, 4, 2, 1):
        trainer = trained(stage, tiny_model, rows["pairs"], tmp_path, micro, **train)
        model = trainer.model
        if stage == "reward":
            model.score.weight.data.copy_(model.model.embed_tokens.weight[5:6])
        else:
            # Otherwise policy and reference would be equal.
            model.lm_head.weight.data.mul_(0.5 if stage == "kto" else 1.5)
        found.append(trainer.evaluate())
    numbers = {k: v for k, v in found[0].items() if "per_second" not in k and "time" not in k}
    assert {"eval_loss"} < numbers.keys() and (train or stage != "kto" or numbers["eval_kl"] > 0.1)
    for metrics in found[1:]:
        for key, value in numbers.items():
            assert metrics[key] == pytest.approx(value, rel=2e-5, abs=rounding(stage, key, numbers)), key


def rounding(stage: str, key: str, metrics: dict[str, float]) -> float:
    """Tolerance for float32. A margin near 0 has the rounding error of the log-probabilities, times β = 0.1, and of the rewards
    whose difference it is."""
    if stage not in ("kto", "orpo", "simpo") or not key.endswith("rewards/margins"):
        return 1e-7
    reward, logp = (abs(metrics[key.replace("rewards/margins", name)]) for name in ("rewards/chosen", "logps/chosen"))
    return 1e-7 * max(1.0, reward, 0.1 * logp)


LOSSES = [
    ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]}),
    ("dpo", {"loss_type": ["sft"]}),
    ("dpo", {"loss_type": ["ipo"]}),
    ("reward", {"center_rewards_coefficient": 0.1}),
    ("kto", {"undesirable_weight": 0.5}),
    ("orpo", {"beta": 0.5}),
    ("simpo", {}),
    ("simpo", {"loss_type": "cpo"}),
    ("sft", {}),
    ("sft", {"loss_type": "dft"}),
    ("sft", {"label_smoothing_factor": 0.1}),
    ("distill", {"hard_weight": 0.3}),
]


@pytest.mark.parametrize(("stage", "train"), LOSSES, ids=str)
@pytest.mark.slow
def test_a_step_is_the_same_however_it_is_cut(stage, train, tiny_model, rows, tmp_path):
    """Plain gradient descent, so that a weight shows its gradient: Adam would scale it."""
    weights, logged = [], []
    source, teacher = rows["chats" if stage in ("sft", "distill") else "pairs"], {"teacher": tiny_model}
    for micro in (7, 1):
        asked = {"optim": "sgd", "learning_rate": 0.1, "seed": 0} | train | (teacher if stage == "distill" else {})
        trainer = trained(stage, tiny_model, source, tmp_path, micro, **asked)
        if stage in ("distill", "kto"):  # otherwise the two models would be equal, and KTO's reference point 0
            trainer.model.lm_head.weight.data.mul_(1.5 if stage == "distill" else 0.5)
        trainer.train()
        weights.append([p.detach().clone() for p in trainer.model.parameters()])
        logged.append(trainer.state.log_history[0])
    assert max((a - b).abs().max().item() for a, b in zip(*weights, strict=True)) < 1e-6
    one, cut = logged
    assert stage != "kto" or one["kl"] > 0.1
    for key in one.keys() - {"train_runtime", "train_tokens_per_second"}:
        assert cut[key] == pytest.approx(one[key], rel=2e-5, abs=rounding(stage, key, one)), key
