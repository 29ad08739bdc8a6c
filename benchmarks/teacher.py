"""Measures what running the teacher only once saves: the same distillation with the teacher in memory and from its stored distributions.

    python benchmarks/teacher.py [--base HuggingFaceTB/SmolLM2-135M-Instruct] [--steps 8] [--repeats 2] [--train.KEY VALUE …]

Runs configs/distill.yaml (the student has 8 of the teacher's layers) with the base as teacher, in single-threaded processes, in turn:
whole (all probabilities, with a pass of the teacher in every step), kept (train.top_k: 64, computed before the first step) and none
(train.hard_weight: 1, the tokens alone, a lower bound on the cost). All take the same rows in the same order, so a ratio compares the
same step. From the second epoch on, kept costs only its steps; the extra cost of the first epoch, computing the distributions, is
printed. CPU seconds are those of the process itself, independent of other load.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--base",
        default="HuggingFaceTB/SmolLM2-135M-Instruct",
        help="the teacher, from whose layers the student is made",
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options, extra = parser.parse_known_args()
    if options.side:
        return train(json.loads(options.side))
    from jobs.distill import STAGE
    from lib.runtime import hardware
    from lib.stage import plan, training_cli

    found: dict[str, list[dict]] = {"whole": [], "kept": [], "none": []}
    with tempfile.TemporaryDirectory() as folder:
        common = ["--config", "configs/distill.yaml", "--model.base", options.base, "--train.teacher", options.base]
        common += [
            "--data.limit",
            str(16 * options.steps),
            "--train.max_steps",
            str(options.steps),
            "--scale.workers",
            "1",
        ]
        common += ["--run", f"{folder}/run", *extra]
        for _ in range(options.repeats):
            for side, more in (
                ("whole", []),
                ("kept", ["--train.top_k", "64", "--train.keep", f"{folder}/keep"]),
                ("none", ["--train.hard_weight", "1"]),
            ):
                planned = plan.make(training_cli.parse(STAGE, [*common, *more]), STAGE)
                env = os.environ | hardware.worker_env(planned.job.scale, planned.device.gpu)
                command = [sys.executable, __file__, "--side", json.dumps(planned.job.to_dict())]
                done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stderr[-3000:])
                found[side].append(json.loads(done.stdout.splitlines()[-1]))
    show(found)
    return 0


def train(job_json: dict) -> int:
    """Runs the trainer that a worker would get, in its own process; prints when each step ended."""
    import torch
    from transformers import TrainerCallback

    from jobs.distill import STAGE
    from lib import data
    from lib.config.job import Job
    from lib.stage.training_arguments import arguments

    job = Job.from_dict(job_json)
    torch.set_num_threads(job.scale.cpus_per_worker)
    record: dict[str, list] = {"wall": [], "cpu": [], "losses": []}

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            record["wall"].append(time.perf_counter())
            record["cpu"].append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        args, _ = arguments(job, STAGE.config, 1, folder)
        args.save_strategy, args.logging_steps = "no", 1
        began = time.process_time()
        trainer = STAGE.build(job, args, data.load(job.data, STAGE.rows))
        before = time.process_time() - began
        trainer.add_callback(Clock())
        trainer.train()
        losses = [x["loss"] for x in trainer.state.log_history if "loss" in x]
    print(json.dumps(record | {"losses": losses, "before": before, "rows": len(trainer.train_dataset)}))
    return 0


def show(found: dict[str, list[dict]]) -> None:
    first = next(iter(found["kept"]))
    for clock in ("cpu", "wall"):
        steps = {side: [b - a for run in runs for a, b in pairwise(run[clock])] for side, runs in found.items()}
        middle = ", ".join(f"{side} {statistics.median(took):.2f}" for side, took in steps.items())
        print(f"{clock} seconds a step: {middle}")
        for side in ("kept", "none"):
            ratios = [a / b for a, b in zip(steps["whole"], steps[side], strict=True)]
            low, _, high = statistics.quantiles(ratios, n=4)
            print(
                f"  whole : {side} {statistics.median(ratios):.2f}× (quartiles {low:.2f}–{high:.2f} of {len(ratios)} steps)"
            )
    extra = first["before"] - found["kept"][-1]["before"]
    print(f"computing the stored distributions of {first['rows']} rows: {extra:.1f} CPU seconds, once")
    far = max(abs(a - b) / a for a, b in zip(found["whole"][0]["losses"], first["losses"], strict=True))
    print(f"losses of whole and kept differ by at most {far:.1%}")


if __name__ == "__main__":
    sys.exit(main())
