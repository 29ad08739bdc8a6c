"""The loss of each stage on hand-written log-probabilities, compared with a literal computed by hand from its paper's formula.

Two pairs, given as each answer's tokens and their log-probabilities. Sums: chosen −1.5 (2 tokens) and −1.5 (3), rejected −2 (1) and
−1.6 (2). The reference's sums are −2, −1, −1, −2.
"""

import json
from types import SimpleNamespace

import pytest

from lib.config.job import Data, Job, Model, Scale
from lib.stage.training_arguments import arguments
from tests import stages

LOGPS = [[0, -0.5, -1.0, 0], [0, -0.2, -0.3, -1.0], [0, -2.0, 0, 0], [0, -0.4, -1.2, 0]]
REFERENCE = [[0, -1.0, -1.0, 0], [0, -0.5, -0.5, 0.0], [0, -1.0, 0, 0], [0, -0.5, -1.5, 0]]
ANSWERS = [[0, 0, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0]]
REAL = [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
SCORES = [2.0, 0.5, 1.0, 1.5]

GOLDEN = [
    ("sft", {}, 0.6),  # 3.0 nats over the 5 tokens of the two chosen answers
    ("reward", {}, 0.8132616875),  # −½ (log σ(1) + log σ(−1))
    ("dpo", {"beta": 0.1}, 0.6800581934),  # −½ (log σ(0.1 · 1.5) + log σ(0.1 · −0.9))
    ("kto", {"beta": 0.1, "desirable_weight": 1.5}, 0.6225064779),
    ("kto", {"beta": 0.1, "loss_type": "apo_zero_unpaired"}, 0.4962548699),
    ("orpo", {"beta": 0.1}, 0.6292978201),  # 0.6 + 0.1 · mean of −log σ of the odds
    ("simpo", {"beta": 2.0, "simpo_gamma": 1.0}, 0.5572142652),  # margins 2 · 1.25 − 1 and 2 · 0.3 − 1
    ("simpo", {"loss_type": "cpo", "beta": 0.1}, 1.2783096643),
]


def hand(logps: list[list[float]]):
    """Returns a model with these log-probabilities, or with SCORES as a reward model."""
    import torch

    logps = torch.tensor(logps)
    top, mask = torch.zeros_like(logps, dtype=torch.bool), torch.tensor(ANSWERS)[: len(logps), 1:].bool()

    def model(**inputs):
        return SimpleNamespace(
            log_probs=logps, entropy=torch.zeros_like(logps), mean_logits=torch.zeros_like(logps), is_top1=top,
            label_mask=mask, logits=torch.tensor(SCORES)[:, None],
        )  # fmt: skip

    return model


@pytest.mark.parametrize(
    ("stage", "train", "loss"), GOLDEN, ids=[f"{s}-{t.get('loss_type', '')}" for s, t, _ in GOLDEN]
)
def test_loss(stage, train, loss, tiny_model, pairs_file, chats_file, tmp_path):
    import torch

    data = Data(chats_file if stage == "sft" else pairs_file, limit=8)
    scale = Scale(global_batch=4, micro_batch=4, precision="fp32")
    job = Job("unused", stage, Model(tiny_model), data, train | {"max_steps": 1}, scale)
    args, _ = arguments(job, stages.stage(stage).config, 1, str(tmp_path))
    trainer = stages.built(job, args)
    rows = 2 if stage == "sft" else 4
    mask, real = torch.tensor(ANSWERS)[:rows], torch.tensor(REAL)[:rows]
    batch = {"input_ids": torch.full((rows, 5), 7), "attention_mask": real}
    if stage == "sft":
        batch["labels"] = torch.where(mask == 1, 7, -100)
    elif stage != "reward":
        batch["completion_mask"] = mask
    if stage == "kto":
        batch["label"], trainer.kl = torch.tensor([True, True, False, False]), 0.2
    trainer.ref_model = hand(REFERENCE) if getattr(trainer, "ref_model", None) else None
    assert trainer.ref_model or stage not in ("dpo", "kto")
    found = trainer.compute_loss(hand(LOGPS[:rows]), batch)
    assert float(found) == pytest.approx(loss, rel=1e-6)


DISTILLED = [
    ({"hard_weight": 0.1}, 0.2547428074),  # 0.1 · −ln 0.6 + 0.9 · (0.9 ln 1.5 + 0.1 ln ¼)
    ({"hard_weight": 0.0, "divergence": "reverse_kl"}, 0.3112386796),  # 0.6 ln ⅔ + 0.4 ln 4
    ({"hard_weight": 0.0, "divergence": "jsd"}, 0.0632878244),  # half of each to the mean, 0.75 and 0.25
    ({"hard_weight": 0.0, "soft_temperature": 2.0}, 1.1683998898),  # 4 · KL; at T = 2 the student has √0.6 : √0.4
    ({"hard_weight": 1.0}, 0.5108256238),  # −ln 0.6
]


@pytest.mark.parametrize("stage", ["distill", "prune"])
@pytest.mark.parametrize(("train", "loss"), DISTILLED, ids=[str(i) for i in range(len(DISTILLED))])
def test_loss_of_a_student(stage, train, loss, tiny_model, chats_file, tmp_path):
    """Token 7 is learnt, to which the student gives 0.6 and the teacher 0.9; token 8 has the rest. Of two rows, one has a label."""
    import torch

    from lib.methods.distillation.teacher import Said

    scale = Scale(global_batch=4, micro_batch=4, precision="fp32")
    how = {"teacher": tiny_model} | ({"sparsity": 0.5} if stage == "prune" else {})
    job = Job(str(tmp_path), stage, Model(tiny_model), Data(chats_file, limit=8), how | train | {"max_steps": 1}, scale)
    args, _ = arguments(job, stages.stage(stage).config, 1, str(tmp_path))
    trainer = stages.built(job, args)

    def split(of_7: float):
        logp = torch.full((1, trainer.tokens), -1e4)
        logp[0, 7:9] = torch.tensor([of_7, 1 - of_7]).log()
        return logp

    def student(**inputs):
        return SimpleNamespace(logits=split(0.6).expand(2, 1, -1))

    student.training = True
    trainer.teacher = SimpleNamespace(about=lambda batch: Said(None, split(0.9)))
    batch = {"input_ids": torch.full((2, 3), 7), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
    batch["labels"] = torch.tensor([[-100, -100, 7], [-100, -100, -100]])
    assert float(trainer.compute_loss(student, batch)) == pytest.approx(loss, rel=1e-6)


def test_odds_at_the_ends_of_their_range():
    """Losses and gradients are finite for answers that are nearly certain or nearly impossible."""
    import torch

    from lib.methods.preference.losses import odds_ratio

    chosen = torch.tensor([-1e-6, -80.0, -0.6931, -1e-6], requires_grad=True)
    rejected = torch.tensor([-80.0, -1e-6, -0.6932, -1e-6], requires_grad=True)
    loss = odds_ratio(chosen, rejected)
    loss.sum().backward()
    assert loss.isfinite().all() and chosen.grad.isfinite().all() and rejected.grad.isfinite().all()
    assert float(loss[0]) < 1e-6 and float(loss[1]) == pytest.approx(80 + 13.8155, rel=1e-3)
    assert float(loss[3]) == pytest.approx(0.693147, rel=1e-5)


def test_mismatched_answers_are_of_other_prompts():
    from lib.methods.preference.kto import mismatched

    assert mismatched(["a", "b", "c"]) == [1, 2, 0]
    assert mismatched(["a", "a", "b"]) == [2, 2, 0]
    assert mismatched(["a", "b", "b", "a"]) == [1, 3, 3, 1]
    assert mismatched(["a", "a"]) == [1, 0]


def test_reference_point_is_the_mean_over_the_step(tiny_model, tmp_path):
    """z₀ of one KTO step on two workers' micro-batches equals a plain sum over the rows with transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [{"prompt": f"what is {p}?", "completion": f"{a}.", "label": i % 2 == 0}
            for i, (p, a) in enumerate([("red", "a lamp"), ("red", "salt"), ("blue", "the small river stone"), ("round", "bread")])]  # fmt: skip
    file = tmp_path / "labelled.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    train = {"max_steps": 1, "train_sampling_strategy": "sequential", "save_strategy": "no", "logging_steps": 1}
    scale = Scale(global_batch=4, micro_batch=2, precision="fp32")
    job = Job("unused", "kto", Model(tiny_model), Data(str(file), heldout_fraction=0), train, scale)
    args, _ = arguments(job, stages.stage("kto").config, 1, str(tmp_path))
    trainer = stages.built(job, args)
    trainer.model.lm_head.weight.data.mul_(0.5)
    policy = AutoModelForCausalLM.from_pretrained(tiny_model)
    reference = AutoModelForCausalLM.from_pretrained(tiny_model)
    policy.lm_head.weight.data.mul_(0.5)
    tok, total = AutoTokenizer.from_pretrained(tiny_model), 0.0
    for i, j in enumerate([2, 2, 3, 0]):
        asked = tok.apply_chat_template(
            [{"role": "user", "content": rows[i]["prompt"]}], tokenize=False, add_generation_prompt=True
        )
        ids = tok(asked, add_special_tokens=False)["input_ids"]
        answer = tok(f"{rows[j]['completion']}<|im_end|>\n", add_special_tokens=False)["input_ids"]
        whole = torch.tensor([ids + answer])
        for sign, model in ((1, policy), (-1, reference)):
            with torch.no_grad():
                logp = model(whole).logits[0, :-1].log_softmax(-1)
            total += sign * logp[torch.arange(len(ids) - 1, whole.size(1) - 1), whole[0, len(ids) :]].sum().item()
    trainer.train()
    logged = next(r["kl"] for r in trainer.state.log_history if "kl" in r)
    assert total > 0 and logged == pytest.approx(total / 4, rel=1e-4)
