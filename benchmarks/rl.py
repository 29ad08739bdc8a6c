"""Compares a GRPO step of ours with one of TRL's own, and rollouts by two processes with those by one.

    python benchmarks/rl.py [--model.base RUN] [--steps 5] [--KEY VALUE …]

All train by the job of configs/grpo.yaml, with one worker of one core, on the same prompts, arguments and rewards, each in a process of its
own, one after the other. TRL's GRPOTrainer answers by transformers' generate, which is its only way on a CPU. The speed is in tokens of
answers a second, the median of the steps after the first. Rollouts are those of the same step, by rollouts.workers 1 and 2, after one
that isn't timed. Prints a table and exits with 0.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
SIDES = ("TRL", "ours", "1 process", "2 processes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options, extra = parser.parse_known_args()
    sys.path.insert(0, str(ROOT))
    if options.side:
        return measure(options.side, options.steps, extra)
    from lib.config.job import Scale
    from lib.runtime.hardware import worker_env

    found = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--steps", str(options.steps), "--side", side, *extra]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | worker_env(Scale(), False), capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        found[side] = json.loads(done.stdout.splitlines()[-1])
    show(found)


def measure(side: str, steps: int, extra: list[str]) -> None:
    """Prints [tokens of answers a second in each timed step]."""
    import torch

    from cluster.estimate.workload import stage
    from lib import data
    from lib.stage import epochs, plan, training_cli
    from lib.stage.training_arguments import arguments
    from lib.stage.worker import save_work

    torch.set_num_threads(1)
    found = stage("grpo")
    argv = ["--config", str(ROOT / "configs/grpo.yaml"), "--scale.workers", "1", "--train.max_steps", str(steps)]
    argv += ["--train.eval_strategy", "no", "--train.eval_on_start", "false", "--train.save_steps", "1000"]
    with tempfile.TemporaryDirectory() as folder:
        job = plan.make(training_cli.parse(found, [*argv, "--run", f"{folder}/run", *extra]), found).job
        args, _ = arguments(job, found.config, 1, folder)
        inputs = data.load(job.data, found.rows)
        if side == "TRL":
            trainer = of_trl(job, args, inputs)
        else:
            trainer = found.build(job, args, inputs)
            save_work(trainer, "ddp")
            epochs.fill(trainer, trainer.group_sampler.per_step)
        print(
            json.dumps(train(trainer) if side in ("TRL", "ours") else rollouts(trainer, job, args, int(side[0]), steps))
        )


def of_trl(job, args, inputs):
    """Returns TRL's trainer with the job's rewards, computed as ours are, and its own rollouts."""
    from trl import GRPOTrainer

    from lib.methods.rl import rewards
    from lib.methods.rl.rollouts import Rollout
    from lib.models import load

    scored = rewards.make(job, args)

    def total(completions, reference, prompts, **columns) -> list[float]:
        rows = [{"prompt": p, "reference": r} for p, r in zip(prompts, reference, strict=True)]
        return [
            scored.total(n) or 0.0
            for n in scored.score(rows, [Rollout([], [], True, c[0]["content"]) for c in completions])
        ]

    shared = load.for_trainer(job.model, args)
    return GRPOTrainer(args=args, train_dataset=inputs.train, reward_funcs=[total], **shared)


def train(trainer) -> list[float]:
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    trainer.train()
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    answers = trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps
    return [answers * n / (b - a) for n, a, b in zip(lengths[1:], ends, ends[1:], strict=False)]


def rollouts(trainer, job, args, processes: int, steps: int) -> list[float]:
    from dataclasses import replace

    from lib.config.job import Rollouts
    from lib.methods.rl.rollout_pool import make
    from lib.runtime import ray_session

    rows = [row["prompt"] for row in trainer.train_dataset]
    group, count = args.num_generations, job.scale.global_batch
    sampling = trainer.generation.ready(trainer.model).sampling
    job = replace(job, rollouts=Rollouts(workers=processes, batch=group, without="wait"))
    with ray_session.connected():
        pooled = make(job, args, trainer.model, trainer.processing_class, sampling)
        while pooled.pool.starting:
            pooled.pool.finished(60)
        speeds = []
        for step in range(steps):
            prompts = [rows[(step * count + i) // group % len(rows)] for i in range(count)]
            began = time.perf_counter()
            drawn = pooled.answers(prompts, [i % group for i in range(count)], step)
            speeds.append(sum(len(r.answer) for r in drawn) / (time.perf_counter() - began))
    return speeds[1:]


def show(found: dict[str, list[float]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="tokens of answers a second, median of the timed steps")
    for name in ("", "tokens/s", "least to most", "ratio"):
        table.add_column(name)
    for one, other in (("TRL", "ours"), ("1 process", "2 processes")):
        for side in (one, other):
            speeds = found[side]
            ratio = f"{statistics.median(speeds) / statistics.median(found[one]):.2f}×" if side == other else ""
            table.add_row(side, f"{statistics.median(speeds):.1f}", f"{min(speeds):.1f} to {max(speeds):.1f}", ratio)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
