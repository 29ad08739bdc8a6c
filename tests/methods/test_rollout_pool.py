"""Rollout workers: the same bits from any number of them, after one is killed, and for whole runs of GRPO and PPO."""

import pytest
import torch

from tests.methods import rewarded, valued
from tests.methods.rewarded import logged

pytestmark = pytest.mark.slow
LORA = ("--model.adapter", "lora", "--model.peft.target_modules", "all-linear")


@pytest.fixture(scope="module")
def base(tiny_model, tmp_path_factory) -> str:
    return rewarded.base(tiny_model, str(tmp_path_factory.mktemp("base")))


def changed(trainer) -> None:
    """Gives the adapter weights that no new one has."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in trainer.model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.05)


def pooled(base: str, folder: str, workers: int, *more: str, **keys):
    words = ["--rollouts.workers", str(workers), "--rollouts.batch", "2", "--data.limit", "12", *more]
    made = valued.built(base, folder, "--scale.global_batch", "12", *LORA, *words, **keys)
    changed(made)
    return made


def started(pool) -> None:
    while pool.starting:
        pool.finished(60)


def ended(pool) -> None:
    """Frees the cores of its processes."""
    import ray

    for _, actor in pool.idle:
        ray.kill(actor)


def drawn(trainer, step: int = 0) -> list:
    prompts = [row["prompt"] for row in trainer.train_dataset]
    return trainer.rollouts.answers(prompts, [0] * len(prompts), step)


def test_any_number_of_workers_draws_the_same_bits_also_when_one_is_killed(local_ray, base, tmp_path, monkeypatch):
    import ray

    alone = pooled(base, str(tmp_path / "0"), 1)
    pool, never = alone.rollouts.pool, ray.remote(lambda: None).options(num_cpus=10_000).remote()
    starting, pool.starting = pool.starting, {never: (0, None)}
    wanted = drawn(alone)  # by this process, while its worker doesn't start
    assert len({tuple(r.answer) for r in wanted}) > 6 and not pool.idle
    pool.starting = starting
    ray.cancel(never)
    plain = valued.built(base, str(tmp_path / "plain"), "--data.limit", "12", "--scale.global_batch", "12", *LORA)
    changed(plain)
    assert drawn(plain) == wanted

    started(alone.rollouts.pool)
    alone.rollouts.local.answers = None  # this process can draw no more
    assert drawn(alone) == wanted and drawn(alone, step=1) != wanted

    ended(alone.rollouts.pool)
    monkeypatch.setenv("RAY_ADDRESS", local_ray["RAY_ADDRESS"])  # where more workers than cores may be asked for
    other = pooled(base, str(tmp_path / "2"), 2, "--rollouts.without", "wait")
    pool = other.rollouts.pool
    started(pool)
    _, actor = pool.idle[0]
    finished, killed = pool.finished, []

    def interrupted(seconds):
        if not killed:
            killed.append(ray.kill(actor))
        return finished(seconds)

    pool.finished = interrupted
    assert drawn(other) == wanted and killed
    started(pool)
    assert len(pool.idle) == 2 and drawn(other) == wanted
    ended(pool)


def test_workers_draw_with_the_weights_of_the_step(local_ray, base, tmp_path):
    trainer = pooled(base, str(tmp_path), 1, "--rollouts.without", "wait")
    before = drawn(trainer, step=0)
    changed(trainer)
    after = drawn(trainer, step=1)
    assert after == trainer.rollouts.local.answers(
        [row["prompt"] for row in trainer.train_dataset], [0] * 12, 1
    )  # fmt: skip
    assert after != before
    ended(trainer.rollouts.pool)


@pytest.mark.parametrize("build", [rewarded.built, valued.built], ids=["grpo", "ppo"])
def test_a_run_ends_with_the_same_bits_with_and_without_workers(build, local_ray, base, tmp_path):
    ends = []
    for workers in (0, 1):
        words = {"rollouts.workers": workers, "rollouts.without": "wait"}
        argv = [text for key, value in words.items() for text in (f"--{key}", str(value))]
        made = build(base, str(tmp_path / str(workers)), *argv, max_steps=4)
        made.train()
        if workers:
            ended((made.generation.rollouts if build is rewarded.built else made.rollouts).pool)
        ends.append(({n: p.detach() for n, p in made.model.named_parameters()}, logged(made, "reward")))
    (one, rewards), (other, others) = ends
    assert rewards == others and all(torch.equal(one[n], other[n]) for n in one)
