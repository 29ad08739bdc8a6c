"""A step has the same rows on 1, 2 and 4 workers, including the last step of an epoch, for any number of rows."""

from itertools import chain
from pathlib import Path

import pytest
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
from torch.utils.data import BatchSampler

from lib.run import Run
from lib.stage import epochs
from lib.stage.training_arguments import arguments
from tests.conftest import run_job
from tests.stages import built


def steps(rows: int, batch: int, micro: int, workers: int, epoch: int = 0, drop: bool = False) -> list[list[int]]:
    """Returns the rows of each step of an epoch, sorted, as the Trainer's dataloaders on all workers yield them."""
    per_worker = batch // workers
    shards = []
    for worker in range(workers):
        filled = epochs.Filled(SeedableRandomSampler(range(rows), data_seed=7), batch, drop)
        filled.set_epoch(epoch)
        batches = BatchSampler(filled, min(micro, per_worker), drop_last=drop)
        shards.append(list(BatchSamplerShard(batches, workers, worker) if workers > 1 else batches))
    assert len({len(s) for s in shards}) == 1
    accumulated = per_worker // min(micro, per_worker)
    found = []
    for start in range(0, len(shards[0]), accumulated):
        found.append(sorted(i for s in shards for b in s[start : start + accumulated] for i in b))
    return found


@pytest.mark.parametrize("rows", [3, 8, 9, 15, 16, 21])
def test_any_number_of_workers_takes_the_same_rows(rows):
    for epoch in (0, 1):
        one = steps(rows, 8, 2, 1, epoch)
        assert all(len(step) == 8 for step in one) and len(one) == -(-rows // 8)
        assert set(chain(*one)) == set(range(rows))  # every row occurs
        assert steps(rows, 8, 2, 2, epoch) == one and steps(rows, 8, 2, 4, epoch) == one
        assert steps(rows, 8, 4, 1, epoch) == one


def test_rows_that_come_twice_are_others_each_epoch():
    twice = [{i for i in range(21) if list(chain(*steps(21, 8, 2, 1, e))).count(i) > 1} for e in (0, 1)]
    assert [len(t) for t in twice] == [3, 3] and twice[0] != twice[1]


def test_dropping_drops_the_same_rows_too():
    one = steps(21, 8, 2, 1, drop=True)
    assert [len(s) for s in one] == [8, 8] and steps(21, 8, 2, 2, drop=True) == one


def test_a_trainer_gets_them(tiny_model, chats_file, tmp_path):
    from lib.config.job import Data, Job, Model, Scale

    scale = Scale(global_batch=24, micro_batch=4, precision="fp32")
    job = Job("unused", "sft", Model(tiny_model), Data(chats_file, heldout_fraction=0), {"max_length": 64}, scale)
    args, _ = arguments(job, "trl.trainer.sft_config:SFTConfig", 1, str(tmp_path))
    trainer = built(job, args)
    assert len(trainer.train_dataset) == 64 and epochs.fill(trainer, 24) == 8
    assert [len(b["input_ids"]) for b in trainer.get_train_dataloader()] == [4] * 18


@pytest.mark.parametrize("order", ["random", "sequential"])
def test_a_run_resumed_in_its_second_epoch_takes_the_rows_that_are_left_of_it(order, tiny_model, chats_file, tmp_path):
    """10 rows in batches of 4 are 3 steps per epoch; the checkpoint is of step 4."""
    from lib.config.job import Data, Job, Model, Scale

    train = {"num_train_epochs": 2, "save_steps": 4, "train_sampling_strategy": order, "max_length": 64}
    scale = Scale(global_batch=4, micro_batch=2, precision="fp32")
    job = Job("unused", "sft", Model(tiny_model), Data(chats_file, heldout_fraction=0, limit=10), train, scale)
    taken = []
    for resume in (None, str(tmp_path / "checkpoint-4")):
        args, _ = arguments(job, "trl.trainer.sft_config:SFTConfig", 1, str(tmp_path))
        trainer = built(job, args)
        epochs.fill(trainer, 4)
        rows, loss = [], trainer.compute_loss
        trainer.compute_loss = lambda model, inputs, *a, rows=rows, loss=loss, **k: (
            rows.extend(map(tuple, inputs["input_ids"].tolist())) or loss(model, inputs, *a, **k)
        )
        trainer.train(resume_from_checkpoint=resume)
        taken.append(rows)
    whole, left = taken
    assert len(whole) == 24 and len(set(whole[:12])) == len(set(whole[12:])) == 10
    assert left == whole[16:]


@pytest.mark.slow
def test_two_workers_train_as_one_does_through_the_end_of_an_epoch(tiny_model, chats_file, local_ray, tmp_path):
    """64 rows in batches of 24: the third step of an epoch has the remaining 16 and 8 repeated rows. Of 5 held-out rows in batches of 4,
    one is left for both workers."""
    runs = [Run(tmp_path / name) for name in ("one", "two")]
    heldout = tmp_path / "heldout.jsonl"
    rows = Path(chats_file).read_text().replace("what is the", "where is the").splitlines()
    heldout.write_text("\n".join(rows[:5]))
    words = ["--model.base", tiny_model, "--data.source", chats_file, "--data.heldout", str(heldout)]
    words += ["--train.num_train_epochs", "2", "--train.logging_steps", "1", "--train.learning_rate", "1e-3"]
    words += ["--scale.global_batch", "24", "--scale.micro_batch", "4", "--scale.precision", "fp32"]
    for run, workers in zip(runs, "12", strict=True):
        done = run_job("sft", *words, "--run", run.path, "--scale.workers", workers, env=local_ray)
        assert done.returncode == 0, done.stderr
        assert "64 examples are not a multiple of 24: each epoch repeats 8 from its start" in done.stdout
        assert "the last step of each epoch filled up with rows of that epoch" in done.stdout
    losses, tokens = (
        [[r[k] for r in run.metrics() if "loss" in r] for run in runs] for k in ("loss", "num_input_tokens_seen")
    )
    assert len(losses[0]) == 6 and tokens[0] == tokens[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    held_out = [[r["eval_loss"] for r in run.metrics() if "eval_loss" in r] for run in runs]
    assert len(held_out[0]) == 1 and held_out[0] == pytest.approx(held_out[1], rel=1e-5)
    one, two = (run.provenance() for run in runs)
    assert one["repeated_rows"] == two["repeated_rows"] == 16 and one["tokens"] == two["tokens"]
    assert (
        one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-4) == pytest.approx(sum(losses[0]) / 6, rel=1e-4)
    )
