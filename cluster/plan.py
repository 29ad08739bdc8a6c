"""Memory, hours and dollars of a job on each machine that could run it, before anything is rented.

    python -m cluster plan configs/dpo.yaml --train.max_length 1024 --gpu "RTX 4090|A100" --max-price 1.0

The job is checked as jobs/dpo.py would check it. Nothing is rented or started, and no weights are loaded. Each number is printed
with its source: memory (footprint.py), speed (throughput.py), the cost of preemptions (waste.py).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path

from cluster.estimate import candidates, throughput
from cluster.estimate.fit import GONE_S, MTBF_H, START_S, Row, gib, judge
from cluster.estimate.workload import Work, stage
from lib.config import config_file
from lib.config.job import Job
from lib.errors import UsageError
from lib.run import Run
from lib.runtime import refusing
from lib.stage import plan, training_cli
from lib.stage.declared import configured

LEARN = 3
"""How many finished runs in the same folder, not read before, each call reads for their speed."""


def main(argv: list[str]) -> int:
    """Returns the exit code. 0: at least one machine can run the job. 1: none can. 2: a mistake in the job or an option."""
    args, rest = _parser().parse_known_args(argv)
    name = args.stage or configured(args.config)
    if not Path(args.config).is_file():
        print(f"python -m cluster plan: there is no file {args.config}.", file=sys.stderr)
        return 2
    with refusing.refusing(f"jobs/{name}.py" if (Path("jobs") / f"{name}.py").is_file() else "python -m cluster plan"):
        if "space" in (tree := config_file.read_yaml(args.config)):
            start = tree.get("config", "")
            raise UsageError(
                f"{args.config} is a search (python -m tune) and is not a stage that trains. Plan the job that it starts from: python -m cluster plan {start}"
            )
        work, planned = understand(name, ["--config", args.config, *rest])
        known = learn(Path(work.job.run).parent) if "://" not in work.job.run else throughput.load()
        places = [candidates.here(work.job.scale), candidates.COLAB]
        disk = 20 + 4 * work.plain().parameters * 4 / 1e9
        found, missing = candidates.offered(work.job.scale.workers, args.gpu, args.max_price, disk)
        rows = [judge(work, c, known, args.mtbf_hours) for c in places + found]
    rows.sort(key=lambda r: (r.problem is not None, r.hours is None, r.usd or 0.0, r.hours or 0.0))
    if args.json:
        print(json.dumps(_tree(work, rows, missing), indent=1))
    else:
        show(work, planned, rows, missing, args)
    return 0 if any(r.problem is None for r in rows) else 1


def understand(name: str, argv: list[str]) -> tuple[Work, plan.Plan]:
    """Returns the work of a job, with the arguments that jobs/<name>.py would get. Raises UsageError that lists every mistake."""
    found = stage(name)
    # A dry run, so that a job whose run folder already exists can be planned again.
    request = training_cli.parse(found, [*argv, "--dry-run"])
    os.environ.setdefault("RAY_ADDRESS", "auto")  # check against a cluster, not against this machine's cores
    planned = plan.make(request, found, ask=False)
    return Work(planned.job, found, planned.check.rows if planned.check.complete else None), planned


def learn(folder: Path) -> list[throughput.Measured]:
    """Returns the measured speeds of devices, after adding the newest finished runs in a folder."""
    known = throughput.load()
    seen, new = {m.run for m in known}, []
    finished = sorted(folder.glob("*/provenance.json"), key=lambda p: -p.stat().st_mtime)
    found = {run.path: run for run in (Run(str(p.parent)) for p in finished)}  # a symlink and its target are one run
    for run in [run for path, run in found.items() if path not in seen][:LEARN]:
        try:
            p = run.provenance()
            if p.get("status") == "finished" and p.get("tokens_per_second"):
                new.append(measured(run))
        except (ValueError, KeyError):  # damaged files, or its base model or data no longer exists
            continue
    return throughput.remember(new) if new else known


def measured(run: Run) -> throughput.Measured:
    p, job = run.provenance(), Job.from_dict(run.job())
    work = Work(job, stage(job.stage), p["data"]["rows"])
    gpu = not p["hardware"].startswith("cpu")
    flops = p["tokens_per_second"] / p["workers"] * work.operations(gpu, p["precision"])
    start = p["seconds"]["total"] - p["seconds"]["train"] - p["seconds"].get("restarts", 0.0)
    where = throughput.here(p["hardware"])
    return throughput.Measured(
        run.path, where, p["precision"], job.stage, p["workers"], flops, start, throughput.save_speed(run)
    )


def _tree(work: Work, rows: list[Row], missing: list[str]) -> dict:
    a = work.plain()
    steps = work.steps()
    return {
        "parameters": a.parameters,
        "trainable": a.trainable,
        "steps": steps,
        "tokens": steps and round(steps * work.tokens_per_step()),
        "lengths": asdict(work.lengths),
        "candidates": [asdict(r) | {"bytes": r.footprint.total} for r in rows],
        "left_out": missing,
    }


def show(work: Work, planned: plan.Plan, rows: list[Row], missing: list[str], args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from lib.runtime.console import show as pairs

    a, steps, n = work.plain(), work.steps(), work.lengths
    read = (
        f"longest {n.longest}, mean {n.mean:.0f} in {n.read} rows"
        if n.read
        else "rows not read: each is assumed to have the maximum length"
    )
    count = (
        f"{steps * work.tokens_per_step():,.0f} in {steps:,} steps"
        if steps
        else "unknown until the workers read the rows; set train.max_steps"
    )
    job = [row for row in planned.lines() if row[0] in ("stage", "base", "trains", "data", "batch")]
    pairs(
        [*job, ("parameters", f"{a.parameters:,}, of which {a.trainable:,} train"), ("tokens", f"{count} ({read})")],
        f"{work.job.stage}: before anything is rented",
    )
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
    kinds = {("a GPU" if r.candidate.gpus else "a CPU worker"): r.footprint for r in reversed(rows)}
    table = Table(title="\nmemory at the peak", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for kind in kinds:
        table.add_column(kind, justify="right")
    for part in dict.fromkeys(p for f in kinds.values() for p in f.parts):
        table.add_row(part, *(gib(f.parts[part]) if part in f.parts else "" for f in kinds.values()))
    table.add_row("together", *(gib(f.total) for f in kinds.values()))
    console.print(table)
    table = Table(title="\nmachines", title_justify="left", box=None, pad_edge=False)
    for column in ("where", "machine", "$/h", "memory", "hours", "$", "lost", "train.save_steps", ""):
        table.add_column(column, justify="left" if column in ("where", "machine", "") else "right", overflow="fold")
    for r in rows:
        c = r.candidate
        table.add_row(
            c.where + (" spot" if c.spot else ""),
            (f"{c.machines} × " if c.machines > 1 else "") + (f"{c.gpus} × {c.device}" if c.gpus else c.device),
            f"{c.usd_per_hour * c.machines:.3f}",
            f"{gib(r.footprint.total)} of {gib(c.memory)}"
            if c.gpus
            else f"{work.job.scale.workers} × {gib(r.footprint.total)} of {gib(c.memory)}",
            "?" if r.hours is None else _hours(r.hours),
            "?" if r.usd is None else f"{r.usd:.2f}",
            "" if r.wasted is None else f"{r.wasted:.0%}",
            "" if r.save_steps is None else str(r.save_steps),
            _words(r),
        )
    console.print(table)
    for how in dict.fromkeys(f"{r.candidate.device}: {r.speed}" for r in rows if r.speed):
        console.print(f"speed   {how}")
    console.print(
        f"assumed a spot machine is preempted every {args.mtbf_hours:g} h (--mtbf-hours), {GONE_S:.0f} s until a replacement answers, {START_S:.0f} s until it trains"
    )
    for why in missing:
        console.print(f"left out {why}")


def _hours(hours: float) -> str:
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.1f}"


def _words(r: Row) -> str:
    notes = []
    if r.problem:
        notes.append(
            f"doesn't fit: {r.problem}." + (f" It would with: {r.remedy}" if r.remedy else " No setting changes that.")
        )
    if r.sessions and r.sessions > 1:
        notes.append(f"{r.sessions} sessions of {r.candidate.session_s / 3600:.0f} h, each continued with --resume")
    if r.usd and r.boots_usd > 0.05 * r.usd:
        notes.append(f"${r.boots_usd:.2f} of it is the host's charge for downloading image and packages at each boot")
    if r.network > 0.2:
        notes.append(f"{r.network:.0%} of a step is gradient exchange, at an assumed 100 Mbit/s")
    return "; ".join(notes)


def _hours_between(text: str) -> float:
    hours = float(text)
    if not hours >= 0.01:
        raise argparse.ArgumentTypeError(f"must be at least 0.01, is {text}")
    return hours


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("config", help="the job's YAML; overrides may follow, as for jobs/STAGE.py")
    add("--stage", help="name of the file in jobs/ (default: the name of the config, or of its folder)")
    add(
        "--gpu",
        type=lambda text: tuple(n.strip() for n in text.split("|") if n.strip()),
        default=(),
        metavar="NAME|NAME",
        help="only market offers with one of these GPUs",
    )
    add("--max-price", type=float, default=math.inf, metavar="USD", help="maximum $/h of a machine")
    add(
        "--mtbf-hours",
        type=_hours_between,
        default=MTBF_H,
        metavar="H",
        help=f"mean hours between preemptions of a spot machine (default: {MTBF_H:g})",
    )
    add("--json", action="store_true", help="print every field as JSON")
    return parser
