"""Memory, hours and dollars of a job on each machine that could run it, before anything is rented.

    python -m cluster plan configs/dpo.yaml --train.max_length 1024 --gpu "RTX 4090|A100" --max-price 1.0

The job is checked as jobs/dpo.py would check it. Nothing is rented or started, and no weights are loaded. Where the numbers come
from is said beside them: memory (footprint.py), speed (throughput.py), what preemptions cost (waste.py).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path

from cluster import candidates, throughput
from cluster.judge import GONE_S, MTBF_H, START_S, Row, gib, judge
from cluster.work import Work, stage
from lib import cli
from lib.config import Job
from lib.run import Run
from lib.stage import plan

LEARN = 3
"""Finished runs beside this one that are looked at for their speed each time."""


def main(argv: list[str]) -> int:
    """0: there is a machine for it. 1: it fits nowhere. 2: a mistake in the job or an option."""
    args, rest = _parser().parse_known_args(argv)
    name = args.stage or Path(args.config).stem
    if not Path(args.config).is_file():
        print(f"python -m cluster plan: there is no file {args.config}.", file=sys.stderr)
        return 2
    with cli.refusing(f"jobs/{name}.py" if (Path("jobs") / f"{name}.py").is_file() else "python -m cluster plan"):
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
    """The work of a job as jobs/<name>.py would be given it. Raises UsageError with every mistake."""
    found = stage(name)
    # A dry run, since nothing is started: a job whose run is already there can be planned again.
    request = cli.parse(found, [*argv, "--dry-run"])
    os.environ.setdefault("RAY_ADDRESS", "auto")  # it is checked for a cluster, and not for the cores of this machine
    planned = plan.make(request, found, ask=False)
    return Work(planned.job, found, planned.check.rows if planned.check.complete else None), planned


def learn(folder: Path) -> list[throughput.Measured]:
    """What is known of devices' speed, with the newest finished runs in a folder added."""
    known = throughput.load()
    seen, new = {m.run for m in known}, []
    finished = sorted(folder.glob("*/provenance.json"), key=lambda p: -p.stat().st_mtime)
    found = {run.path: run for run in (Run(str(p.parent)) for p in finished)}  # a link leads to a run that is here too
    for run in [run for path, run in found.items() if path not in seen][:LEARN]:
        try:
            p = run.provenance()
            if p.get("status") == "finished" and p.get("tokens_per_second"):
                new.append(measured(run))
        except (ValueError, KeyError):  # its files are damaged, or its base or its data are gone
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

    from lib.console import show as pairs

    a, steps, n = work.plain(), work.steps(), work.lengths
    read = (
        f"longest {n.longest}, mean {n.mean:.0f} in {n.read} rows"
        if n.read
        else "unread: each taken to be as long as it may"
    )
    count = (
        f"{steps * work.tokens_per_step():,.0f} in {steps:,} steps"
        if steps
        else "unknown until the workers read the rows; give train.max_steps"
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
        f"assumed a spot machine is lost every {args.mtbf_hours:g} h (--mtbf-hours), {GONE_S:.0f} s until another answers, {START_S:.0f} s until it trains"
    )
    for why in missing:
        console.print(f"left out {why}")


def _hours(hours: float) -> str:
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.1f}"


def _words(r: Row) -> str:
    said = []
    if r.problem:
        said.append(
            f"doesn't fit: {r.problem}." + (f" Would: {r.remedy}" if r.remedy else " No change here would help.")
        )
    if r.sessions and r.sessions > 1:
        said.append(f"{r.sessions} sessions of {r.candidate.session_s / 3600:.0f} h, each going on with --resume")
    if r.usd and r.boots_usd > 0.05 * r.usd:
        said.append(f"${r.boots_usd:.2f} of it is its host's price of traffic, for image and packages at each boot")
    if r.network > 0.2:
        said.append(f"{r.network:.0%} of a step is the network, at an assumed 100 Mbit/s")
    return "; ".join(said)


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
    add("config", help="the job's YAML; keys of the job may follow, as for jobs/STAGE.py")
    add("--stage", help="file in jobs/ (default: the config's name)")
    add(
        "--gpu",
        type=lambda text: tuple(n.strip() for n in text.split("|") if n.strip()),
        default=(),
        metavar="NAME|NAME",
        help="of the markets' offers, these only",
    )
    add("--max-price", type=float, default=math.inf, metavar="USD", help="$/h of a machine, at most")
    add(
        "--mtbf-hours",
        type=_hours_between,
        default=MTBF_H,
        metavar="H",
        help=f"hours between preemptions of a spot machine (default: {MTBF_H:g})",
    )
    add("--json", action="store_true", help="all of it, with every field")
    return parser
