"""Proves that interruptions don't change your job's result: kills the job, resumes it, and compares the final weights bit for bit.

    python jobs/drill.py --config configs/dpo.yaml --train.max_steps 12 --train.save_steps 3

The job runs once undisturbed. Then it runs once per kill and is disturbed at a chosen or random step:
    worker    kill -9 of one training worker; Ray restarts the group on its own
    driver    kill -9 of the job's own process, then --resume
    ray       kill -9 of the driver and every Ray process below it, then --resume
    truncate  like driver, but the largest file of the newest checkpoint is also truncated before --resume
    flip      like driver, but one bit of that file is also flipped before --resume
Exits with 0 only if every run ends with the same SHA-256 of model/ and the same losses.
"""

import argparse
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from lib.errors import nearest
from lib.run import Run, absolute
from lib.runtime import checkpoint
from lib.stage.declared import configured

ROOT = Path(__file__).parent.parent
KINDS = ("worker", "driver", "ray", "truncate", "flip")


def start(stage: str, run: Run, config: str, extra: list[str], resume: bool = False) -> subprocess.Popen:
    """Starts the job and writes its output to a file beside the run, since an unread pipe could fill up and block the job."""
    where = ["--resume" if resume else "--run", run.path]
    log = Path(f"{run.path}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, f"jobs/{stage}.py", "--config", config, "--train.logging_steps", "1", *extra, *where]
    with log.open("ab") as f:
        return subprocess.Popen(command, cwd=ROOT, stdout=f, stderr=f)


def disturb(process: subprocess.Popen, run: Run, kind: str, step: int, wait: float, last: int) -> bool:
    """Kills `wait` seconds after `step` has been logged. Exits if the job fails before that.

    Returns False if the kill came too late to prove anything: after step `last`, the job's last one, for a worker, and after the end
    of the run for the other kinds.
    """
    damages = kind in ("truncate", "flip")  # these need a checkpoint to damage
    while not any(r["step"] >= step for r in run.metrics() if "loss" in r) or (damages and not checkpoint.steps(run)):
        if process.poll() is not None:
            sys.exit(f"The job ended before step {step} was logged; its output is in {run.path}.log")
        time.sleep(0.05)
    time.sleep(wait)
    below = started_by(process)
    names = {p: command_line(p) for p in below}
    if kind == "worker":
        return kill_worker([p for p, name in names.items() if "RayTrainWorker" in name], run, last)
    process.kill()
    if kind == "ray":
        for p in below:
            with suppress(psutil.NoSuchProcess):
                p.kill()
    process.wait()
    # Ray ends what ran for a lost driver. Its agents stay for a minute, to report it to a head that is gone, and write no file of a run.
    psutil.wait_procs([p for p, name in names.items() if "ray::" in name and "Agent" not in name], timeout=60)
    if outcome(run)[0]:
        return False
    if damages:
        damage(run, kind)
    return True


def kill_worker(workers: list[psutil.Process], run: Run, last: int) -> bool:
    """Kills one of them. Returns False if all have ended, or step `last` has been logged."""
    if not workers:
        return False
    victim = random.choice(workers)
    try:
        victim.suspend()  # so that the run can't end between this look at its metrics and the kill
        too_late = any(r["step"] >= last for r in run.metrics() if "loss" in r)
        victim.resume() if too_late else victim.kill()
    except psutil.NoSuchProcess:
        return False
    return not too_late


def command_line(process: psutil.Process) -> str:
    """Returns "" if the process has ended in the meantime."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def started_by(process: subprocess.Popen) -> list[psutil.Process]:
    """Returns all descendants of the process, including Ray's."""
    return psutil.Process(process.pid).children(recursive=True)


def damage(run: Run, kind: str) -> None:
    """Truncates the largest file of the newest checkpoint, or flips one bit in its middle."""
    folder = Path(run.at(f"checkpoints/checkpoint-{checkpoint.steps(run)[-1]}"))
    victim = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    with victim.open("r+b") as f:
        if kind == "truncate":
            f.truncate(victim.stat().st_size // 2)
        else:
            f.seek(victim.stat().st_size // 2)
            byte = f.read(1)[0]
            f.seek(-1, 1)
            f.write(bytes([byte ^ 1]))


def outcome(run: Run) -> tuple[str | None, list[tuple[int, float]]]:
    """Returns (SHA-256 of model/, logged losses) of a finished run."""
    return run.provenance().get("model_sha256"), [(r["step"], r["loss"]) for r in run.metrics() if "loss" in r]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the job's YAML; other options go to the job")
    parser.add_argument("--stage", help="file in jobs/ (default: the name of the config, or of its folder)")
    parser.add_argument("--kills", type=int, default=5, help="number of disturbed runs (default: 5)")
    parser.add_argument(
        "--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="kinds of kill, used in turn (default: all)"
    )
    parser.add_argument("--at", type=int, nargs="+", help="steps to kill at, in turn (default: random)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", default="runs/drill", help="folder for the runs of the drill")
    parser.add_argument("--dry-run", action="store_true", help="run the job's own --dry-run and kill nothing")
    options, extra = parser.parse_known_args()
    stage = options.stage or configured(options.config)
    if not (ROOT / "jobs" / f"{stage}.py").is_file():
        stages = [p.stem for p in (ROOT / "jobs").glob("*.py")]
        parser.error(f"--stage: there is no jobs/{stage}.py.{nearest(stage, stages)}")
    if options.kills < 1 or min(options.at or [1]) < 1:
        parser.error("--kills and --at: must be 1 or more")
    if options.dry_run:
        command = [sys.executable, f"jobs/{stage}.py", "--config", options.config, *extra, "--dry-run"]
        sys.exit(subprocess.run(command, cwd=ROOT).returncode)
    rng = random.Random(options.seed)
    random.seed(options.seed)
    folder = f"{absolute(options.run)}/{stage}-{time.strftime('%Y%m%d-%H%M%S')}"
    reference = Run(f"{folder}/undisturbed")
    print(f"undisturbed run: {reference.path}", flush=True)
    if start(stage, reference, options.config, extra).wait():
        sys.exit(f"The undisturbed run failed; its output is in {reference.path}.log")
    sha, losses = outcome(reference)
    step_seconds = reference.provenance()["seconds"]["train"] / reference.provenance()["steps"]
    bad = 0
    for i in range(options.kills):
        kind = options.kinds[i % len(options.kinds)]
        steps = [s for s, _ in losses[:-1]]
        step = options.at[i % len(options.at)] if options.at else rng.choice(steps)
        run = Run(f"{folder}/{i + 1}-{kind}-{step}")
        process, wait = start(stage, run, options.config, extra), rng.uniform(0, step_seconds)
        while not disturb(process, run, kind, step, wait, last=losses[-1][0]):
            process.wait()
            if step == 1:
                sys.exit(
                    f"Even after step 1, the job ended before it could be disturbed ({kind}). Train for more steps."
                )
            step, wait = step // 2, 0.0
            print(
                f"{i + 1}/{options.kills}  the job ended before it was disturbed ({kind}); trying after step {step}",
                flush=True,
            )
            run = Run(f"{folder}/{i + 1}-{kind}-{step}")
            process = start(stage, run, options.config, extra)
        if kind != "worker":
            process = start(stage, run, options.config, extra, resume=True)
        code = process.wait()
        same = code == 0 and outcome(run) == (sha, losses)
        bad += not same
        wrong = f"the run failed with exit code {code}" if code else "DIFFERS"
        verdict = "bit-equal" if same else f"{wrong} (output in {run.path}.log)"
        print(f"{i + 1}/{options.kills}  {kind}, after step {step}: {verdict}", flush=True)
    if bad:
        sys.exit(f"{bad} of {options.kills} disturbed runs did not end like the undisturbed one.")
    print(
        f"All {options.kills} disturbed runs ended with the undisturbed run's weights, model/ SHA-256 {sha[:16]}…, and its losses."
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print(
            "\nInterrupted before the proof was complete. The runs so far are kept; rerun the command to start new ones.",
            file=sys.stderr,
        )
        sys.exit(130)
