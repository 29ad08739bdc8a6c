"""A job takes the same steps on the same samples with any number of workers and any strategy."""

import pytest

from lib.run import Run

COMMON = "--train.max_steps 6 --train.save_steps 3 --train.logging_steps 1 --train.learning_rate 1e-3 --scale.global_batch 8 --scale.micro_batch 4 --scale.precision fp32"


def losses(run: Run) -> list[float]:
    return [r["loss"] for r in run.metrics() if "loss" in r]


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory, tiny_model, chats_file, local_ray):
    """arguments(strategy options) of the SFT job, and its losses on one worker."""
    from tests.conftest import run_job

    folder = tmp_path_factory.mktemp("scale")
    base = ["--model.base", tiny_model, "--data.source", chats_file, *COMMON.split()]
    done = run_job("sft", *base, "--run", folder / "one", env=local_ray)
    assert done.returncode == 0, done.stderr
    return base, losses(Run(folder / "one"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        "--scale.strategy ddp",
        "--scale.strategy fsdp",
        "--scale.strategy zero3 --scale.offload true",
        *(
            pytest.param(options, marks=pytest.mark.soak)
            for options in (
                "--scale.strategy zero1",
                "--scale.strategy zero2",
                "--scale.strategy zero3",
                "--scale.strategy zero2 --scale.offload true",
            )
        ),
    ],
)
def test_two_workers_follow_one_worker(options, one_worker, local_ray, tmp_path):
    """The Trainer logs losses in fp32, which two workers sum in another order; an error in a strategy shows in the third digit."""
    from tests.conftest import run_job

    base, expected = one_worker
    done = run_job("sft", *base, "--scale.workers", "2", *options.split(), "--run", tmp_path / "two", env=local_ray)
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "two")
    assert losses(run) == pytest.approx(expected, abs=2e-5)
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(run.model_dir()).num_parameters() > 0


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize(
    ("objective", "strategy"),
    [("clm", "fsdp"), ("prefix_lm", "fsdp"), ("mlm", "zero3"), ("nsp", "zero3"), ("span_corruption", "zero3"), ("electra", "zero2")],
)  # fmt: skip
def test_two_workers_pretrain_like_one(objective, strategy, local_ray, tmp_path):
    from tests.conftest import run_job

    given = "--model.size 4m --model.vocab_size 512 --data.limit 300 --data.heldout_limit 20 --train.warmup_steps 0"
    options = ["--config", f"configs/pretrain/{objective}.yaml", *given.split(), *COMMON.split()]
    for name, scale in (("one", "--scale.workers 1"), ("two", f"--scale.workers 2 --scale.strategy {strategy}")):
        done = run_job("pretrain", *options, *scale.split(), "--run", tmp_path / name, env=local_ray)
        assert done.returncode == 0, done.stderr
    one, two = (losses(Run(tmp_path / name)) for name in ("one", "two"))
    assert two == pytest.approx(one, abs=2e-5) and len(two) == 6
