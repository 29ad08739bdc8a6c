"""GRPO: its first loss and gradient by hand, answers that depend on nothing but their place, resumes, workers, and missing rewards."""

import json
from itertools import pairwise

import pytest
import torch

from lib.methods.rl.group_sampler import GroupSampler
from tests.methods import rewarded
from tests.methods.as_worker import Two
from tests.methods.rewarded import logged
from tests.stages import planned


@pytest.fixture(scope="module")
def base(tiny_model, tmp_path_factory) -> str:
    return rewarded.base(tiny_model, str(tmp_path_factory.mktemp("base")))


def totals(numbers: list[list[float]]) -> torch.Tensor:
    """Returns the rewards of `rewarded.options`, weighted."""
    return torch.tensor([0.1 * chrf - 0.5 * length for chrf, length in numbers])


def advantages(rewards) -> torch.Tensor:
    groups = rewards.view(-1, 4)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def test_the_first_loss_and_gradient_are_those_of_a_computation_by_hand(base, tmp_path):
    """L = −Σ_i A_i Σ_t log π(y_it) ÷ Σ_i T_i, since the ratio is 1 before the first update (dapo: a mean over the tokens of the step)."""
    from transformers import AutoModelForCausalLM

    trainer = rewarded.built(base, str(tmp_path), max_steps=1)
    trainer.train()
    drawn, numbers = trainer.generation.drawn, trainer.generation.numbers
    advantage, sizes = advantages(totals(numbers)), torch.tensor([len(r.answer) for r in drawn])
    assert len(drawn) == 8 and len(set(sizes.tolist())) > 1 and advantage.abs().max() > 0.5
    assert logged(trainer, "loss")[0] == pytest.approx(-(advantage * sizes).sum().item() / sizes.sum().item(), abs=1e-5)

    model, loss = AutoModelForCausalLM.from_pretrained(base, dtype="float32"), 0.0
    for rollout, a in zip(drawn, advantage, strict=True):
        ids = torch.tensor([rollout.prompt + rollout.answer])
        logp = model(ids).logits[0, len(rollout.prompt) - 1 : -1].log_softmax(-1)
        loss = loss - a * logp.gather(1, torch.tensor(rollout.answer)[:, None]).sum() / sizes.sum()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    assert logged(trainer, "grad_norm")[0] == pytest.approx(norm, rel=1e-4)


def test_dr_grpo_has_the_gradient_of_rloo_but_for_a_factor(base, tmp_path):
    """RLOO: − mean_i (r_i − mean of the others' r) log π(y_i). Here G = 4 answers to a prompt, of at most 6 tokens."""
    from transformers import AutoModelForCausalLM

    trainer = rewarded.built(base, str(tmp_path), max_steps=1, loss_type="dr_grpo", scale_rewards="none")
    trainer.train()
    groups = totals(trainer.generation.numbers).view(-1, 4)
    advantage = (groups - (groups.sum(1, keepdim=True) - groups) / 3).flatten()
    model, loss = AutoModelForCausalLM.from_pretrained(base, dtype="float32"), 0.0
    for rollout, a in zip(trainer.generation.drawn, advantage, strict=True):
        logp = (
            model(torch.tensor([rollout.prompt + rollout.answer]))
            .logits[0, len(rollout.prompt) - 1 : -1]
            .log_softmax(-1)
        )
        loss = loss - a * logp.gather(1, torch.tensor(rollout.answer)[:, None]).sum() / 8
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    assert logged(trainer, "grad_norm")[0] == pytest.approx(norm * 3 / (4 * 6), rel=1e-4)


def test_an_answer_depends_on_seed_step_prompt_and_number_alone(base, tmp_path):
    trainer = rewarded.built(base, str(tmp_path))
    rollouts = trainer.generation.ready(trainer.model.train())
    prompts = [row["prompt"] for row in trainer.train_dataset]
    asked, numbers = [p for p in prompts for _ in range(4)], [0, 1, 2, 3] * len(prompts)
    together = rollouts.answers(asked, numbers, step=3)
    rollouts.generator.batch_rows = 3
    order = list(range(len(asked)))[::-1]
    apart = rollouts.answers([asked[i] for i in order], [numbers[i] for i in order], step=3)
    assert apart[::-1] == together
    assert len({tuple(r.answer) for r in together[:4]}) > 1
    assert rollouts.answers(asked, numbers, step=4) != together
    assert trainer.model.training


def test_each_step_asks_whole_groups_of_prompts_in_an_order_of_its_epoch():
    sampler = GroupSampler(rows=5, per_step=2, group=3, repeats=2, seed=0)
    first = list(sampler)
    assert len(first) == len(sampler) == 6 * 3 * 2
    steps = [first[at : at + 12] for at in range(0, 36, 12)]
    for step in steps:
        a, b = step[0], step[3]
        assert step == ([a] * 3 + [b] * 3) * 2 and a != b
    order = [row for step in steps for row in (step[0], step[3])]
    assert sorted(order[:5]) == [0, 1, 2, 3, 4] and order[5] == order[0]
    sampler.set_epoch(1)
    second = sampler.order()
    assert second != order and sorted(second[:5]) == [0, 1, 2, 3, 4]
    dropped = GroupSampler(5, 2, 3, 1, 0, drop=True)
    assert dropped.order() == order[:4] and len(dropped) == 12


@pytest.mark.slow
def test_micro_batches_and_workers_change_no_step(base, tmp_path):
    two = Two("tests.methods.rewarded", str(tmp_path / "two"), base, cache=str(tmp_path / "cache"))
    ones = [rewarded.built(base, str(tmp_path / f"{micro}"), micro=micro, max_steps=3) for micro in (8, 2)]
    for trainer in ones:
        trainer.train()
    other = two.result()
    for name, key in (("losses", "loss"), ("rewards", "reward")):
        whole, small = (logged(trainer, key) for trainer in ones)
        assert (
            len(whole) == 3
            and small == pytest.approx(whole, abs=2e-5)
            and other[name] == pytest.approx(whole, abs=2e-5)
        )
    assert other["heldout"]["eval_reward"] == pytest.approx(ones[0].evaluate()["eval_reward"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"])
def test_micro_batches_change_no_step_with_other_losses(loss, base, tmp_path):
    keys = {
        "loss_type": loss,
        "max_steps": 4,
        "num_iterations": 2,
        "save_steps": 4,
        "beta": 0.04,
        "learning_rate": 1e-3,
    }
    if loss == "luspo":
        keys["importance_sampling_level"] = "sequence"
    whole, small = (rewarded.built(base, str(tmp_path / f"{micro}"), micro=micro, **keys) for micro in (8, 2))
    for trainer in (whole, small):
        trainer.train()
    assert logged(small, "loss") == pytest.approx(logged(whole, "loss"), abs=2e-5)
    assert logged(small, "kl") == pytest.approx(logged(whole, "kl"), abs=2e-5) and max(logged(whole, "kl")) > 0


def test_held_out_answers_take_nothing_from_the_log_of_training(base, tmp_path):
    apart, beside = (
        rewarded.built(base, str(tmp_path / name), max_steps=3, logging_steps=3, **keys)
        for name, keys in (("apart", {}), ("beside", {"eval_strategy": "steps", "eval_steps": 2}))
    )
    for trainer in (apart, beside):
        trainer.train()
    assert logged(beside, "reward") == logged(apart, "reward") and len(logged(beside, "reward")) == 1
    held = [row for row in beside.state.log_history if "eval_reward" in row]
    assert [row["step"] for row in held] == [2, 3] and not any("reward" in row for row in held)


def test_a_reward_of_weight_0_is_measured_on_held_out_answers_and_changes_no_step(base, tmp_path):
    plain, beside = (
        rewarded.built(base, str(tmp_path / name), *more, max_steps=2)
        for name, more in (("plain", ()), ("beside", ("--rewards.unfinished", "0")))
    )
    for trainer in (plain, beside):
        trainer.train()
    assert logged(beside, "loss") == pytest.approx(logged(plain, "loss"), abs=1e-5) and not logged(
        beside, "rewards/unfinished/mean"
    )
    assert logged(beside, "rewards/length/mean")
    one, other = plain.evaluate(), beside.evaluate()
    assert other["eval_reward"] == pytest.approx(one["eval_reward"], abs=1e-5) and "eval_rewards/unfinished" not in one
    share = other["eval_rewards/unfinished"]
    assert other["eval_answers"] == 5
    assert other["eval_standard_error/unfinished"] == pytest.approx((share * (1 - share) / 4) ** 0.5)


def test_the_share_of_different_pairs_of_tokens_is_logged(base, tmp_path):
    trainer = rewarded.built(base, str(tmp_path), max_steps=1)
    trainer.train()
    pairs = [pair for r in trainer.generation.drawn for pair in pairwise(r.answer)]
    assert logged(trainer, "distinct_2") == [pytest.approx(len(set(pairs)) / len(pairs))]


@pytest.mark.parametrize("passes", [1, 2])
def test_a_run_resumed_in_the_second_epoch_is_bit_equal(passes, base, tmp_path):
    keys = {"max_steps": 6 * passes, "save_steps": 4 * passes, "num_iterations": passes, "beta": 0.04}
    whole = rewarded.built(base, str(tmp_path / "whole"), **keys)
    whole.train()
    again = rewarded.built(base, str(tmp_path / "again"), **keys)
    again.train(resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{4 * passes}"))
    assert logged(again, "loss") == logged(whole, "loss") and logged(again, "kl") == logged(whole, "kl")
    for name, p in whole.model.state_dict().items():
        assert torch.equal(p, again.model.state_dict()[name]), name
    assert whole.state.epoch == 2 and (passes == 1 or max(logged(whole, "clip_ratio/region_mean")) > 0)


def test_an_answer_without_a_reward_is_left_out_and_counted(base, tmp_path):
    """The other answers' advantages are those of their group without it; a missing reward isn't a 0."""
    trainer = rewarded.built(base, str(tmp_path), max_steps=1)
    rewards = trainer.generation.rewards
    real = rewards.scores[0]
    rewards.scores[0] = lambda rows, rollouts: [None if i == 1 else x for i, x in enumerate(real(rows, rollouts))]
    trainer.train()
    numbers, drawn = trainer.generation.numbers, trainer.generation.drawn
    assert numbers[1] == [None, None] and logged(trainer, "rewards/missing") == [0.125]
    left = totals([n for i, n in enumerate(numbers) if i != 1])
    group = left[:3]
    advantage = torch.cat(
        [((group - group.mean()) / (group.std() + 1e-4))[[0]], torch.zeros(1),
         ((group - group.mean()) / (group.std() + 1e-4))[1:], advantages(left[3:])]
    )  # fmt: skip
    sizes = torch.tensor([len(r.answer) for r in drawn])
    assert logged(trainer, "loss")[0] == pytest.approx(-(advantage * sizes).sum().item() / sizes.sum().item(), abs=1e-5)
    assert logged(trainer, "reward")[0] == pytest.approx(left.mean().item(), abs=1e-5)


def test_tasks_score_what_follows_the_reasoning_and_read_references_from_rows():
    from lib.methods.rl import rewards
    from lib.methods.rl.rollouts import Rollout

    task, metric = rewards.task_metric("gsm8k")
    assert metric == "exact" and task.reference("3 + 4 = 7\n#### 7") == "7" == task.reference("7")
    with pytest.raises(ValueError, match="no number"):
        task.reference("seven")
    rollout = Rollout([1], [2], True, "<think>\n7 or 8?\n</think>\n\n#### 8")
    assert task.score(rewards.Example("", [], "8"), rollout.final)["exact"] == 1.0
    assert rewards.task_metric("demo.slots")[1] == "slots"


def test_a_pattern_is_searched_in_the_whole_answer():
    from types import SimpleNamespace

    from lib.config.job import Job
    from lib.methods.rl import rewards
    from lib.methods.rl.rollouts import Rollout

    job = Job("run", "grpo", rewards={"matches:^<think>.+</think> *[0-9]$": 1.0})
    rewards.check(job, SimpleNamespace(reward_clip=None))
    drawn = [Rollout([], [], True, text) for text in ("<think>4 + 3\nis 7</think> 7", "7", "<think></think>7")]
    assert rewards.make(job, SimpleNamespace(reward_clip=None)).score([{}] * 3, drawn) == [[1.0], [0.0], [0.0]]


def test_rewards_are_limited_before_their_weights():
    from lib.methods.rl.rewards import Rewards

    scored = Rewards(["a", "b"], [2.0, -1.0], [lambda rows, out: [3.0, -0.5], lambda rows, out: [0.25, 9.0]], clip=1.0)
    numbers = scored.score([{}, {}], [None, None])
    assert numbers == [[1.0, 0.25], [-0.5, 1.0]] and [scored.total(n) for n in numbers] == [1.75, -2.0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rewards.dmeo", "1"], "rewards.dmeo: there is none. Nearest: demo"),
        (["--rewards.demo.slot", "1"], "rewards.demo.slot: demo has no metric slot. Nearest: slots"),
        (["--rewards.humaneval", "1"], "rewards.humaneval: its rows hold more than an answer"),
        (["--rewards.run:runs/none", "1"], "rewards.run:runs/none"),
        (["--rewards.matches:(", "1"], "rewards.matches:(: is no regular expression"),
        (["--rewards.demo", "much"], "rewards.demo: the weight must be a number, or null to leave it out, is 'much'"),
        (["--rewards.length", "0", "--rewards.reference.chrf", "0"], "rewards: name at least one"),
        (["--train.kl_limit", "5"], "train.kl_limit: the KL is measured only if train.beta is above 0"),
        (["--train.kl_limit", "-1", "--train.beta", "0.1"], "train.kl_limit: must be above 0"),
        (["--train.num_generations", "3"], "scale.global_batch: 8 answers are no whole number of groups of 3"),
        (["--train.num_iterations", "4"], "train.save_steps: 3 is no multiple"),
        (["--train.loss_type", "bnpo"], "train.loss_type: bnpo divides by the tokens of a micro-batch"),
        (["--train.top_entropy_quantile", "0.2"], "train.top_entropy_quantile: ranks the tokens of a micro-batch"),
        (["--train.sync_ref_model", "true"], "train.sync_ref_model: the changed reference isn't in checkpoints"),
        (["--train.use_vllm", "true"], "train.use_vllm is not a key"),
        (["--train.temperature", "0"], "train.temperature: answers are sampled"),
        (["--train.max_completion_length", "600"], "train.max_completion_length: 11 of 11 prompts"),
        (["--scale.strategy", "zero3"], "scale.strategy: zero3 shards the weights"),
        (["--model.adapter", "prefix"], "model.adapter: prefix isn't supported here"),
        (["--model.adapter", "pissa", "--train.beta", "0.04"], "model.adapter: pissa changes the base's weights"),
        (
            ["--model.adapter", "lora", "--model.peft.init_lora_weights", "olora", "--train.beta", "0.04"],
            "model.peft.init_lora_weights: olora changes the base's weights",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(words, says, base, tmp_path):
    with pytest.raises(ValueError) as e:
        planned("grpo", [*rewarded.options(base, str(tmp_path), save_steps=3), *words])
    assert says in str(e.value)


def test_prompts_without_answers_are_refused_for_a_reward_that_compares(base, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"What is {n}?"}) + "\n" for n in range(8)))
    argv = [*rewarded.options(base, str(tmp_path)), "--data.source", str(file), "--data.heldout_fraction", "0.3"]
    with pytest.raises(ValueError, match=r"rewards.reference.chrf: compares answers with right ones"):
        planned("grpo", argv)
    with pytest.raises(ValueError, match=r"rewards.length: of weight 0, so measured on held-out rows"):
        measured = ["--rewards.reference.chrf", "null", "--rewards.length", "0", "--rewards.unfinished", "-1"]
        planned("grpo", [*argv, *measured, "--data.heldout_fraction", "0"])
    lines = dict(planned("grpo", [*argv, "--rewards.reference.chrf", "null"]).lines())
    assert lines["rewards"] == "-0.5 × length; 4 answers to each prompt, up to 6 tokens"
