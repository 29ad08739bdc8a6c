"""Settings that change during training."""

import json

import pytest
import torch
from transformers import get_scheduler

from lib.config.job import Schedule
from lib.run import Run
from lib.stage.schedule_callback import ScheduleCallback
from tests.conftest import run_job


class State:
    global_step = 0


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "constant_with_warmup"])
def test_after_the_change_the_rate_is_what_it_would_be_had_training_begun_with_it(kind):
    def rates(first: float, schedule: Schedule) -> list[float]:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=first)
        scheduler = get_scheduler(kind, optimizer, num_warmup_steps=2, num_training_steps=10)
        change, found = ScheduleCallback(schedule), []
        for State.global_step in range(10):
            change.on_step_begin(None, State, None, optimizer=optimizer, lr_scheduler=scheduler)
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    low, high = rates(1e-3, Schedule()), rates(3e-3, Schedule())
    assert rates(1e-3, Schedule(learning_rate={"4": 3e-3})) == low[:4] + high[4:]
    assert rates(1e-3, Schedule(learning_rate={"0": 3e-3})) == high


def test_parameters_without_weight_decay_get_none():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "weight_decay": w} for w in (0.1, 0.0)]
    optimizer = torch.optim.AdamW(groups)
    State.global_step = 3
    ScheduleCallback(Schedule(weight_decay={"3": 0.5})).on_step_begin(None, State, None, optimizer=optimizer)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.5, 0.0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--schedule.learning_rate", '{"x": 0.1}'],
            "schedule.learning_rate: x is not a step: must be a whole number from 0.",
        ),
        (["--schedule.learning_rate", '{"3": 0}'], "schedule.learning_rate: must be above 0, is 0"),
        (["--schedule.weight_decay", '{"3": 0.1}'], "schedule.weight_decay: needs train.weight_decay above 0"),
        (["--schedule.beta", '{"3": 0.1}'], "--schedule.beta is not a key of this job."),
        (
            ["--schedule.learning_rate", '{"3": 0.1}', "--train.lr_scheduler_type", "reduce_lr_on_plateau"],
            "schedule.learning_rate: train.lr_scheduler_type: reduce_lr_on_plateau chooses the learning rate itself.",
        ),
    ],
)
def test_a_wrong_schedule_is_refused(options, says, tiny_model, chats_file):
    done = run_job("sft", "--model.base", tiny_model, "--data.source", chats_file, "--dry-run", *options)
    assert done.returncode == 2 and says in done.stderr


@pytest.mark.slow
def test_a_run_with_a_schedule_resumes_to_the_same_bits(tiny_model, chats_file, local_ray, tmp_path):
    """Resumed from the checkpoint before the change, at the change, and after it."""
    words = [
        "--model.base",
        tiny_model,
        "--data.source",
        chats_file,
        "--data.heldout_fraction",
        "0",
        "--scale.precision",
        "fp32",
    ]
    words += [
        "--train.max_steps",
        "6",
        "--train.save_steps",
        "1",
        "--train.save_total_limit",
        "9",
        "--train.logging_steps",
        "1",
    ]
    words += [
        "--train.weight_decay",
        "0.1",
        "--schedule.learning_rate",
        '{"3": 0.01}',
        "--schedule.weight_decay",
        '{"2": 0.5}',
    ]
    done = run_job("sft", *words, "--run", tmp_path / "whole", env=local_ray)
    assert done.returncode == 0, done.stderr
    whole = Run(tmp_path / "whole")
    rates = [row["learning_rate"] for row in whole.metrics()[:6]]
    assert rates == pytest.approx([2e-5 * left / 6 for left in (6, 5, 4)] + [0.01 * left / 6 for left in (3, 2, 1)])
    for step in (2, 3, 4):
        again = Run(tmp_path / f"from-{step}")
        whole.get("", again.path)
        for later in range(step + 1, 7):
            again.remove(f"checkpoints/checkpoint-{later}")
        again.write_text("provenance.json", json.dumps(whole.provenance() | {"status": "interrupted"}))
        done = run_job("sft", "--resume", again.path, env=local_ray)
        assert done.returncode == 0, done.stderr
        assert again.provenance()["model_sha256"] == whole.provenance()["model_sha256"]
