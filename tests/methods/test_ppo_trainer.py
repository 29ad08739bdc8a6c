"""PPO's trainer: its first update by hand, resumes, micro-batches and workers, the value model, and missing rewards."""

import pytest
import torch
from safetensors.torch import load_file

from lib.methods.rl import value_model
from tests.methods import rewarded, valued
from tests.methods.as_worker import Two
from tests.methods.rewarded import logged
from tests.stages import planned

LORA = ("--model.adapter", "lora", "--model.peft.target_modules", "all-linear")


@pytest.fixture(scope="module")
def base(tiny_model, tmp_path_factory) -> str:
    return rewarded.base(tiny_model, str(tmp_path_factory.mktemp("base")))


def totals(numbers) -> list[float]:
    """Returns the rewards of `valued.options`, weighted."""
    return [0.1 * chrf - 0.5 * length for chrf, length in numbers]


def weights(trainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}


def test_the_first_update_is_that_of_a_computation_by_hand(base, tmp_path):
    """All values are 0 before it, the ratio is 1, and the reference is the policy: A_t = λ^(n − t) · reward, whitened, with R_t = A_t."""
    from transformers import AutoModelForCausalLM

    trainer = valued.built(base, str(tmp_path), max_steps=1, lam=0.5)
    trainer.train()
    drawn, scores = trainer.drawn, totals(trainer.numbers)
    sizes = [len(r.answer) for r in drawn]
    assert len(set(sizes)) > 1 and len(set(scores)) > 1
    returns = [torch.tensor([s * 0.5 ** (n - 1 - t) for t in range(n)]) for s, n in zip(scores, sizes, strict=True)]
    flat = torch.cat(returns)
    advantages = ((flat - flat.mean()) / (flat.var() + 1e-8).sqrt()).split(sizes)

    model, tokens = AutoModelForCausalLM.from_pretrained(base, dtype="float32"), sum(sizes)
    head = torch.nn.Linear(64, 1)
    torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
    loss = 0.0
    for rollout, a, wanted in zip(drawn, advantages, returns, strict=True):
        ids, at = torch.tensor([rollout.prompt + rollout.answer]), slice(len(rollout.prompt) - 1, -1)
        states = model.model(ids).last_hidden_state[0, at]
        logp = model.lm_head(states).log_softmax(-1).gather(1, torch.tensor(rollout.answer)[:, None])[:, 0]
        values = head(states)[:, 0]
        loss = loss - (a * (logp - logp.detach()).exp()).sum() + 0.1 * 0.5 * ((values - wanted) ** 2).sum()
    (loss / tokens).backward()
    assert logged(trainer, "loss")[0] == pytest.approx(loss.item() / tokens, abs=1e-5)
    parameters = [*model.parameters(), *head.parameters()]
    norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm().item()
    assert logged(trainer, "grad_norm")[0] == pytest.approx(norm, rel=1e-4)
    assert logged(trainer, "kl_sequence") == [0.0] and logged(trainer, "explained_variance") == [0.0]
    assert logged(trainer, "reward")[0] == pytest.approx(sum(scores) / 4, abs=1e-6)


def test_an_update_moves_the_ratio_and_a_rollout_brings_it_back_to_1(base, tmp_path):
    trainer = valued.built(base, str(tmp_path), max_steps=4)
    trainer.train()
    moved = logged(trainer, "approx_kl")
    assert moved[0] == moved[2] == 0 and moved[1] > 1e-6 and moved[3] > 1e-6
    assert len(logged(trainer, "reward")) == 2 and logged(trainer, "kl_sequence")[1] != 0


def test_equal_prompts_of_a_rollout_get_different_answers(base, tmp_path):
    trainer = valued.built(base, str(tmp_path), "--data.limit", "2", "--scale.global_batch", "8", max_steps=1)
    trainer.train()
    assert len({tuple(r.prompt) for r in trainer.drawn}) == 2
    assert len({(tuple(r.prompt), tuple(r.answer)) for r in trainer.drawn}) > 4


def test_the_divergence_is_that_from_the_model_that_the_job_starts_from(base, tmp_path):
    from transformers import AutoModelForCausalLM

    for more in ((), LORA):
        trainer = valued.built(base, str(tmp_path / str(len(more))), *more, max_steps=3, learning_rate=0.05)
        before = []
        collect = trainer._collect
        trainer._collect = lambda rows, collect=collect, t=trainer, b=before: (
            b.append({n: p.detach().clone() for n, p in t.model.named_parameters()}), collect(rows)
        )  # fmt: skip
        trainer.train()
        trainer.model.load_state_dict(before[-1], strict=False)
        reference, found = AutoModelForCausalLM.from_pretrained(base, dtype="float32"), 0.0
        with torch.no_grad():
            for r in trainer.drawn:
                ids, at = torch.tensor([r.prompt + r.answer]), slice(len(r.prompt) - 1, -1)
                logp, ref = (
                    m(ids).logits[0, at].log_softmax(-1).gather(1, torch.tensor(r.answer)[:, None]).sum()
                    for m in (trainer.model, reference)
                )
                found += (logp - ref).item()
        assert abs(found) > 1e-3 and logged(trainer, "kl_sequence")[-1] == pytest.approx(found / 4, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), LORA, ("--train.value", "REWARD")], ids=["all", "lora", "body"])
def test_a_resumed_run_ends_with_the_same_bits_also_in_the_second_epoch(more, base, runs, tmp_path):
    more = [runs["reward"] if word == "REWARD" else word for word in more]
    keys = {"kl_target": 0.5, "kl_horizon": 50, "value_learning_rate": 2e-2}
    whole, again = (valued.built(base, str(tmp_path / name), *more, **keys) for name in ("whole", "again"))
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-6"))
    assert whole.state.epoch == 2 and logged(whole, "kl_coef")[-1] != 0.1
    for name in ("loss", "reward", "kl_coef", "explained_variance"):
        assert logged(again, name) == logged(whole, name)
    one, other = weights(whole), weights(again)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_micro_batches_and_workers_change_no_step(base, tmp_path):
    two = Two("tests.methods.valued", str(tmp_path / "two"), base, cache=str(tmp_path / "cache"))
    whole, small = (valued.built(base, str(tmp_path / f"{micro}"), micro=micro, max_steps=4) for micro in (4, 1))
    for trainer in (whole, small):
        trainer.train()
    wanted = valued.found(whole)
    for other in (valued.found(small), two.result()):
        for name, values in wanted.items():
            assert other[name] == pytest.approx(values, abs=2e-5), name


def test_the_saved_model_has_no_value_model(base, tmp_path):
    from transformers import AutoModelForCausalLM

    trainer = valued.built(base, str(tmp_path), max_steps=2)
    trainer.train()
    stored = load_file(tmp_path / "checkpoint-2/model.safetensors")
    assert not [name for name in stored if value_model.NAME in name]
    kept = load_file(tmp_path / "checkpoint-2/ppo.safetensors")
    assert kept["kl_coef"] == 0.1 and kept["output.weight"].abs().sum() > 0
    trainer.save_model(str(tmp_path / "model"))
    _, found = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not found["unexpected_keys"] and not found["missing_keys"]


def test_the_value_model_of_a_reward_run_starts_with_its_rewards(base, runs, tmp_path):
    """The value after the last token is the run's reward of what was read, so the values before it are rewards of shorter texts."""
    from transformers import AutoModelForSequenceClassification

    trainer = valued.built(base, str(tmp_path), "--train.value", runs["reward"], max_steps=1, learning_rate=1e-9)
    trainer.train()
    model = AutoModelForSequenceClassification.from_pretrained(f"{runs['reward']}/model", dtype="float32")
    part, rollout = trainer.parts[0], trainer.drawn[0]
    read = rollout.prompt + rollout.answer
    for t, value in enumerate(part.values_BS[0][part.mask_BS[0]].tolist()):
        seen = torch.tensor([read[: len(rollout.prompt) + t]])
        with torch.no_grad():
            wanted = model.score(model.model(seen).last_hidden_state[0, -1]).item()
        assert value == pytest.approx(wanted, abs=1e-5)


def test_an_answer_without_its_reward_teaches_nothing_and_is_counted(base, tmp_path):
    trainer = valued.built(base, str(tmp_path), max_steps=1)
    score = trainer.rewards.score
    trainer.rewards.score = lambda rows, drawn: [[None, None], *score(rows, drawn)[1:]]
    trainer.train()
    assert not trainer.parts[0].mask_BS[0].any() and trainer.parts[0].mask_BS[1].any()
    assert logged(trainer, "rewards/missing") == [0.25]
    assert logged(trainer, "reward")[0] == pytest.approx(sum(totals(trainer.numbers[1:])) / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--rewards.reference.chrf", "0", "--rewards.length", "0"], "rewards: name at least one"),
        (["--scale.strategy", "zero3"], "scale.strategy: zero3 shards the weights"),
        (["--model.adapter", "pissa"], "model.adapter: pissa changes the base's weights"),
        (["--train.save_steps", "3"], "train.save_steps: 3 is no multiple of train.num_iterations (2)"),
        (["--train.num_generations", "4"], "train.num_generations"),
        (["--train.lam", "1.5"], "train.lam: must be from 0 to 1, is 1.5"),
        (["--train.cliprange", "0"], "train.cliprange: must be above 0"),
        (["--train.kl_coef", "0", "--train.kl_target", "6"], "train.kl_target: adapts train.kl_coef by a factor"),
        (["--train.value", "nowhere"], "train.value: "),
        (["--rollouts.workers", "-1"], "rollouts.workers: must be at least 0"),
        (["--rollouts.workers", "999"], "rollouts.workers: 999 beside scale.workers: 1 need 1000 CPU cores"),
        (
            ["--rollouts.workers", "1", "--model.adapter", "lora", "--model.peft.init_lora_weights", "pissa"],
            "rollouts.workers: rollout workers",
        ),
        (["--train.max_completion_length", "600"], "train.max_completion_length: "),
    ],
)
def test_settings_that_conflict_are_refused_by_name(more, said, base, tmp_path):
    from lib.errors import UsageError

    with pytest.raises(UsageError) as e:
        planned("ppo", [*valued.options(base, str(tmp_path)), *more])
    assert said in str(e.value)
