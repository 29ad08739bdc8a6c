"""Compares our job with bare TRL on the same work: steady tokens/s, time to the first step, memory, and losses.

    python benchmarks/overhead.py [--stage sft | reward | dpo] [--steps 12] [--repeats 3] [--train.KEY VALUE …]

Both sides run the same job in turn on one machine, with one worker each and the same model, rows, TRL arguments, threads and malloc
settings. Bare TRL is the stage's `build` called in a plain process, with nothing else of ours around it. Both train, measure the
held-out loss and write the merged model. The steady speed is that of the median step after the first two. On a CPU our job skips
operations (lib/models/lm_head.py, lib/models/prefixes.py, lib/models/cpu_lora.py); with --same-work bare TRL skips them too, which isolates the cost of Ray and of
keeping the run. Prints a table of ratios and exits with 0.
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
STAGES = ("sft", "reward", "dpo")


def bare(job_json: str, started: float, same_work: bool) -> None:
    """Builds the Trainer that our worker would get and trains it, in its own process."""
    import resource

    import torch
    from transformers import TrainerCallback

    sys.path.insert(0, str(ROOT))
    from cluster.estimate.workload import stage
    from lib import data
    from lib.config.job import Job
    from lib.models import export, lm_head, load
    from lib.stage.training_arguments import arguments
    from lib.stage.worker import save_work

    if same_work:
        lm_head.project_labelled_only()
    job = Job.from_dict(json.loads(job_json))
    torch.set_num_threads(job.scale.cpus_per_worker)
    with tempfile.TemporaryDirectory() as folder:
        found = stage(job.stage)
        args, _ = arguments(job, found.config, 1, folder)
        args.save_strategy = "no"
        trainer = found.build(job, args, data.load(job.data, found.rows))
        if job.model.adapter != "none":
            load.train_in_fp32(trainer.model)
        if same_work:
            save_work(trainer, job.scale.strategy)
        trainer.add_callback(clock(TrainerCallback, started))
        trainer.train()
        trainer.evaluate()
        export.export(trainer, job.model, Path(folder) / "export")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        losses = [r["loss"] for r in trainer.state.log_history if "loss" in r]
        print("RESULT", json.dumps({"peak": peak, "losses": losses}))


def clock(base: type, started: float):
    """Returns a callback that prints when each step ended."""

    class Clock(base):
        def on_step_end(self, args, state, control, **kwargs):
            print("STEP", json.dumps([state.global_step, time.time() - started]), flush=True)

    return Clock()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, default="sft")
    parser.add_argument("--config", help="the job's YAML (default: configs/STAGE.yaml)")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--same-work", action="store_true", help="skip the same operations in bare TRL's steps")
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    options, extra = parser.parse_known_args()
    if options.bare:
        return bare(options.bare, options.started, options.same_work)

    sys.path.insert(0, str(ROOT))
    from cluster.estimate.workload import stage
    from lib.run import Run
    from lib.runtime.hardware import worker_env
    from lib.stage import plan, training_cli

    common = [
        "--train.max_steps",
        str(options.steps),
        "--train.logging_steps",
        "1",
        "--train.save_steps",
        str(options.steps),
        "--scale.workers",
        "1",
        *extra,
    ]
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(options.repeats):
            run = Run(f"{folder}/{i}")
            argv = ["--config", options.config or f"configs/{options.stage}.yaml", *common, "--run", run.path]
            found = stage(options.stage)
            planned = plan.make(training_cli.parse(found, argv), found)
            started = time.time()
            subprocess.run(
                [sys.executable, f"jobs/{options.stage}.py", *argv], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
            )
            rows = [r for r in run.metrics() if "loss" in r]
            provenance = run.provenance()
            ours.append(
                {
                    "steps": [r["time"] - started for r in rows],
                    "tokens": [r["num_input_tokens_seen"] for r in rows],
                    "peak": provenance["peak_memory_bytes"],
                    "losses": [r["loss"] for r in rows],
                }
            )
            started = time.time()
            command = [sys.executable, __file__, "--bare", json.dumps(planned.job.to_dict()), "--started", str(started)]
            command += ["--same-work"] * options.same_work
            out = subprocess.run(
                command,
                cwd=ROOT,
                check=True,
                capture_output=True,
                text=True,
                env=os.environ | worker_env(planned.job.scale, planned.device.gpu),
            )
            lines = [x.split(" ", 1) for x in out.stdout.splitlines() if x.startswith(("STEP ", "RESULT "))]
            theirs.append(
                {"steps": [json.loads(x)[1] for k, x in lines if k == "STEP"], "tokens": ours[-1]["tokens"]}
                | json.loads(lines[-1][1])
            )
    show(ours, theirs)


def steady(side: dict) -> float:
    """Returns tokens per second, the median over the steps after the second."""
    speeds = [
        (side["tokens"][i] - side["tokens"][i - 1]) / (side["steps"][i] - side["steps"][i - 1])
        for i in range(2, len(side["steps"]))
    ]
    return statistics.median(speeds)


def show(ours: list[dict], theirs: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"our job against bare TRL, {len(ours)} pairs of runs (median)")
    for name in ("", "ours", "bare TRL", "ours against bare", "target"):
        table.add_column(name)
    a, b = statistics.median(map(steady, ours)), statistics.median(map(steady, theirs))
    ratio = statistics.median(steady(x) / steady(y) for x, y in zip(ours, theirs, strict=True))
    table.add_row("steady tokens/s", f"{a:.0f}", f"{b:.0f}", f"{ratio:.3f}×", "≥ 0.98×")
    first = [statistics.median(x["steps"][0] for x in side) for side in (ours, theirs)]
    extra = statistics.median(x["steps"][0] - y["steps"][0] for x, y in zip(ours, theirs, strict=True))
    table.add_row("start to end of first step, s", f"{first[0]:.1f}", f"{first[1]:.1f}", f"{extra:+.1f} s", "≤ +10 s")
    peak = [statistics.median(x["peak"] for x in side) / 2**30 for side in (ours, theirs)]
    table.add_row(
        "peak memory of the training process, GiB", f"{peak[0]:.2f}", f"{peak[1]:.2f}", f"{peak[0] / peak[1]:.2f}×", ""
    )
    apart = max(
        abs(x - y) for a, b in zip(ours, theirs, strict=True) for x, y in zip(a["losses"], b["losses"], strict=True)
    )
    table.add_row("losses, largest difference of a step", "", "", f"{apart:.1e}", "rounding")
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
