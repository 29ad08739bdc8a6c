"""What reading the teacher once saves: the same distillation with it beside the student and from what was kept of it.

    python benchmarks/teacher.py [--base HuggingFaceTB/SmolLM2-135M-Instruct] [--steps 10] [--repeats 2] [--train.KEY VALUE …]

configs/distill.yaml (8 of the teacher's layers are the student) with the base as teacher, one worker with every core, in turn:
whole (every probability, the teacher's pass in every step) and kept (train.top_k: 64, worked out before the first step). Both
take the same rows in the same order, so a ratio is of one step with itself; the median is of all steps but each job's first two.
An epoch of what is kept costs its steps alone from the second on; the first costs the working out too, which is printed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--base", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="teacher, and what the student is made of"
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=2)
    options, extra = parser.parse_known_args()
    from lib import hardware
    from lib.run import Run

    rows = 16 * options.steps
    common = ["--config", "configs/distill.yaml", "--model.base", options.base, "--train.teacher", options.base]
    common += ["--data.limit", str(rows), "--train.max_steps", str(options.steps), "--train.logging_steps", "1"]
    common += ["--train.save_steps", str(options.steps), "--train.eval_strategy", "no", "--eval.tasks", "[]"]
    common += ["--scale.workers", "1", "--scale.cpus_per_worker", str(hardware.local_cpus()), *extra]
    steps: dict[str, list[float]] = {"whole": [], "kept": []}
    tokens: dict[str, list[float]] = {"whole": [], "kept": []}
    with tempfile.TemporaryDirectory() as folder:
        keep = ["--train.top_k", "64", "--train.keep", f"{folder}/keep"]
        for i in range(options.repeats):
            for side, more in (("whole", []), ("kept", keep)):
                run = Run(f"{folder}/{side}-{i}")
                command = [sys.executable, "jobs/distill.py", *common, *more, "--run", run.path]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
                pairs = list(pairwise(r for r in run.metrics() if "loss" in r))[1:]
                steps[side] += [b["time"] - a["time"] for a, b in pairs]
                tokens[side] += [b["num_input_tokens_seen"] - a["num_input_tokens_seen"] for a, b in pairs]
                print(side, run.provenance()["seconds"], file=sys.stderr)
    assert tokens["whole"] == tokens["kept"]
    ratios = [a / b for a, b in zip(steps["whole"], steps["kept"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    for side, took in steps.items():
        speed = sum(tokens[side]) / sum(took)
        size = statistics.median(tokens[side])
        print(f"{side}: {statistics.median(took):.2f} s a step of {size:.0f} tokens, {speed:.0f} tokens/s")
    print(
        f"kept is {statistics.median(ratios):.2f}× as fast (quartiles {low:.2f}–{high:.2f}, {len(ratios)} pairs of steps)"
    )


if __name__ == "__main__":
    main()
