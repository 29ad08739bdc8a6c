"""Compares the estimates of `python -m cluster plan` for seven jobs with measurements: a worker's peak memory, and time.

    python benchmarks/plan.py [--steps 4] [--jobs sft-lora dpo]

The jobs run for real, in turn, on SmolLM2-135M and the demo's rows, each in its own processes. Memory is predicted before anything
runs; the constants of cluster/estimate/memory.py were fitted on this machine to jobs like the first five, not the last two. Time is predicted
from the measured speeds of the other jobs of the same precision, never from the job's own run. Prints a table of errors.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
LORA = ["--model.adapter", "lora", "--model.peft.r", "16", "--model.peft.target_modules", "all-linear"]
JOBS = {
    "sft-fp32": ("sft", 1, ["--scale.precision", "fp32", "--scale.micro_batch", "4"]),
    "sft-lora": ("sft", 2, [*LORA, "--scale.micro_batch", "4"]),
    "dpo": ("dpo", 1, [*LORA, "--scale.micro_batch", "2"]),
    "reward": ("reward", 2, [*LORA, "--scale.micro_batch", "4"]),
    "distill": ("distill", 1, ["--train.teacher", BASE, "--train.keep_layers", "8", "--scale.micro_batch", "8"]),
    "sft-recompute": (
        "sft",
        1,
        [*LORA, "--scale.micro_batch", "16", "--train.gradient_checkpointing", "true"],
    ),
    "dpo-full": ("dpo", 1, ["--scale.micro_batch", "2"]),
}
"""{job: (stage, workers, options)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from cluster import plan
    from cluster.estimate import throughput
    from lib.run import Run
    from lib.runtime import hardware

    with tempfile.TemporaryDirectory() as folder:
        works, runs = {}, {}
        for name in options.jobs:
            stage, workers, own = JOBS[name]
            argv = ["--model.base", BASE, "--data.source", "demo", "--data.limit", "64", "--data.heldout_limit", "8"]
            argv += ["--train.max_steps", str(options.steps), "--train.max_length", "192", "--train.logging_steps", "1"]
            argv += [
                "--train.gradient_checkpointing",
                "false",
                "--scale.global_batch",
                "16",
                "--scale.workers",
                str(workers),
                *own,
            ]
            argv += ["--run", f"{folder}/{name}"]
            works[name], _ = plan.understand(stage, argv)
            env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
            done = subprocess.run(
                [sys.executable, f"jobs/{stage}.py", *argv], cwd=ROOT, env=env, capture_output=True, text=True
            )
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
            runs[name] = Run(f"{folder}/{name}").provenance()
            print(json.dumps({"job": name, "took": runs[name]["seconds"]["total"]}), file=sys.stderr, flush=True)
        known = {name: plan.measured(Run(f"{folder}/{name}")) for name in options.jobs}
        rows = []
        for name, work in works.items():
            p, precision = runs[name], hardware.precision(work.job.scale.precision, "cpu")
            foot = work.footprint(False, precision)
            others = [m for other, m in known.items() if other != name]
            fast = throughput.speed(known[name].hardware, precision, "", others) or throughput.matmul(precision)
            start = statistics.median(m.start_s for m in others) if others else float("nan")
            operations = work.steps() * work.tokens_per_step() * work.operations(False, precision)
            seconds = operations / (fast.flops * work.job.scale.workers)
            rows.append((name, work, foot, p, seconds, start, fast))
        show(rows)


def show(rows: list) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="predicted against measured")
    for name in (
        "job",
        "workers",
        "type",
        "memory, MiB",
        "measured",
        "error",
        "training, s",
        "measured",
        "error",
        "whole, s",
        "measured",
        "error",
        "speed",
    ):
        table.add_column(name, justify="left" if name in ("job", "type", "speed") else "right", overflow="fold")
    for name, work, foot, p, seconds, start, fast in rows:
        pairs = (
            (foot.counted / 2**20, p["peak_memory_bytes"] / 2**20),
            (seconds, p["seconds"]["train"]),
            (seconds + start, p["seconds"]["total"]),
        )
        cells = [
            c
            for predicted, actual in pairs
            for c in (f"{predicted:.0f}", f"{actual:.0f}", f"{predicted / actual - 1:+.0%}")
        ]
        table.add_row(name, str(work.job.scale.workers), p["precision"], *cells, fast.how)
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
