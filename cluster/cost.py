"""Cost of a cluster by node, job and stage, and the share of it that was wasted.

    python -m cluster cost [CLUSTER] [--json]

Computed from the ledger on this machine and that of a rented head, which is fetched. A node's cost is split equally among the jobs
that use it at the time. A training job uses the head and its workers' nodes; any other job uses every node. Wasted are: starting
(before a rental first ran), idle (no job used it), and lost (the cost of a training job's nodes between its last checkpoint and the
loss of one of them, since that work is repeated).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import asdict, dataclass, field

from cluster.money.ledger import Ledger, clusters
from cluster.money.rental_record import Entry
from cluster.node import head_ledger
from cluster.node.autoscaler_config import SETUP_GB
from lib.errors import nearest


@dataclass
class NodeCost:
    node: str
    what: str
    hours: float
    usd: float
    starting_usd: float = 0.0
    idle_usd: float = 0.0


@dataclass
class JobCost:
    entrypoint: str
    stage: str
    """STAGE of jobs/STAGE.py; "" for another program."""
    run: str
    began: float
    ended: float | None
    hours: float
    usd: float = 0.0
    lost_usd: float = 0.0
    step: int | None = None
    max_steps: int | None = None
    to_finish_usd: float | None = None
    """Cost of the remaining steps at the run's own speed and its nodes' prices. None: the run is finished, or it can't be estimated."""


@dataclass
class Costs:
    cluster: str
    usd: float
    usd_per_hour: float
    """At the time `asked`."""
    asked: float
    """Unix time up to which costs are counted."""
    uncertain_usd: float
    """Part of usd that may not have been charged: rentals that ended between two polls."""
    nodes: list[NodeCost]
    jobs: list[JobCost]
    stages: dict[str, float] = field(default_factory=dict)
    wasted: float = 0.0
    """Share of usd."""
    traffic_usd: float = 0.0
    """Estimated charge for downloading image and packages (SETUP_GB), at the hosts' offered prices. Not part of usd: no market reports
    traffic in a documented unit."""
    incomplete: list[str] = field(default_factory=list)
    """Which parts of the ledger are missing here, and why."""


@dataclass
class _Job:
    """A job as recorded in the ledger's notes. until: Unix time at which it ended, or up to which it is known to run."""

    notes: list[dict]
    until: float

    def __post_init__(self):
        self.last = self.notes[-1]
        self.began = self.last["began"]
        self.trains = any("nodes" in n for n in self.notes)

    def uses(self, node: str, head: bool, at: float) -> bool:
        if not self.began <= at < self.until:
            return False
        if head or not self.trains:
            return True
        now = [n for n in self.notes if n["at"] <= at and "nodes" in n]
        return bool(now) and node in now[-1]["nodes"]

    def saved(self, at: float) -> float:
        """Returns the Unix time of its last complete checkpoint before `at`, or else of the start of training."""
        notes = [n for n in self.notes if n.get("nodes") is not None]
        return max([n["saved"] for n in notes if n["saved"] and n["saved"] <= at] or [notes[0]["training_began"]])


def costs(ledger: Ledger, now: float) -> Costs:
    """Returns the costs up to Unix time `now`."""
    from cluster.market import tags

    entries = [e for e in ledger.entries() if e.usd(now) > 0 or e.living]
    polled = ledger.polled() or now
    jobs = [
        _Job(h, min(now, h[-1]["ended"] or (now if now - polled < 60 else polled)))
        for h in ledger.history("job").values()
    ]
    paid, lost = [0.0] * len(jobs), [0.0] * len(jobs)
    nodes = []
    for e in entries:
        begin, end = min([c.since for c in e.charges] or [e.asked]), e.ended or now
        row = NodeCost(e.node or "not known yet", _what(e), max(0.0, min(end, now) - begin) / 3600, e.usd(now))
        head = tags.is_head(e.label)
        cuts = {begin, min(end, now), *([e.up] if e.up else [])}
        cuts |= {t for j in jobs for t in (j.began, j.until, *(n["at"] for n in j.notes)) if begin < t < end}
        for a, b in zip(sorted(cuts), sorted(cuts)[1:], strict=False):
            usd, users = e.usd(b, since=a), [i for i, j in enumerate(jobs) if j.uses(e.node, head, a)]
            for i in users:
                paid[i] += usd / len(users)
            if not users and (e.up is None or a < e.up):
                row.starting_usd += usd
            elif not users:
                row.idle_usd += usd
        nodes.append(row)
    for t, node in sorted((e.lost, e.node) for e in entries if e.lost and e.id):
        for i, job in enumerate(jobs):
            if job.trains and job.uses(node, False, t - 1e-3):
                since = job.saved(t)
                lost[i] += sum(e.usd(t, since=since) for e in entries if job.uses(e.node, False, t - 1e-3))
    rows = [_row(j, paid[i], lost[i], entries) for i, j in enumerate(jobs)]
    total = sum(n.usd for n in nodes)
    wasted = sum(n.starting_usd + n.idle_usd for n in nodes) + sum(lost)
    uncertain = sum(e.uncertain_usd() for e in entries)
    made = Costs(
        ledger.cluster, total, ledger.rate(), now, uncertain, nodes, rows, wasted=wasted / total if total else 0.0
    )
    made.traffic_usd = SETUP_GB * sum(e.download_usd_per_gb for e in entries if e.id)
    for row in rows:
        made.stages[row.stage or "other"] = made.stages.get(row.stage or "other", 0.0) + row.usd
    return made


def _what(e: Entry) -> str:
    return f"{e.count} × {e.gpu}{', spot' if e.spot else ''}" if e.count else f"no GPU{', spot' if e.spot else ''}"


def _row(job: _Job, usd: float, lost: float, entries: list[Entry]) -> JobCost:
    last = job.last
    found = re.search(r"jobs/(\w+)\.py", last["entrypoint"])
    row = JobCost(
        last["entrypoint"], last.get("stage") or (found[1] if found else ""), last.get("run", ""), job.began, last["ended"],
        (job.until - job.began) / 3600, usd, lost, last.get("step"), last.get("max_steps"),
    )  # fmt: skip
    if row.run and row.step is not None and row.step < row.max_steps:
        row.to_finish_usd = _to_finish(row, [e for e in entries if e.node in last["nodes"]])
    return row


def _to_finish(row: JobCost, used: list[Entry]) -> float | None:
    from lib.run import Run

    run = Run(row.run)
    logged = [r for r in run.metrics() if "loss" in r]
    if len(logged) < 2 or run.finished():
        return None
    first, last = logged[max(0, len(logged) - 20)], logged[-1]
    seconds = (last["time"] - first["time"]) / max(1, last["step"] - first["step"])
    rate = sum(e.rental.usd_per_hour + e.rental.disk_usd_per_hour for e in used if e.rental)
    return (row.max_steps - row.step) * seconds * rate / 3600


def main(argv: list[str]) -> int:
    """Returns the exit code. 0: printed. 2: no such cluster on this machine."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cluster", nargs="?", help="its name (default: all clusters with a ledger on this machine)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    args = parser.parse_args(argv)
    known = clusters()
    if args.cluster and args.cluster not in known:
        print(f"There is no ledger of {args.cluster} on this machine.{nearest(args.cluster, known)}", file=sys.stderr)
        return 2
    now = time.time()
    all_of_them = []
    for name in [args.cluster] if args.cluster else known:
        incomplete = [warning for copy in head_ledger.fetch(name) if (warning := copy.says(now))]
        all_of_them.append(costs(Ledger(name), time.time()))
        all_of_them[-1].incomplete = incomplete
    if args.json:
        print(json.dumps([asdict(c) for c in all_of_them], indent=1))
        return 0
    if not all_of_them:
        print("Nothing was ever rented from this machine.")
    for c in all_of_them:
        show(c)
    return 0


def show(c: Costs) -> None:
    uncertain = f", up to ${c.uncertain_usd:.2f} of it possibly not charged" if c.uncertain_usd >= 0.005 else ""
    print(f"{c.cluster}: ${c.usd:.2f}, {c.wasted:.0%} of it wasted{uncertain}; now ${c.usd_per_hour:.3f} an hour")
    for warning in c.incomplete:
        print(f"  {warning}")
    if c.traffic_usd >= 0.005:
        print(
            f"  not counted: traffic; the set-up of these nodes ({SETUP_GB:.1f} GB each) was about ${c.traffic_usd:.2f} more"
        )
    dollars = lambda usd: f"{usd:.4f}" if usd else ""  # noqa: E731
    table(
        [("node", ""), ("", ""), ("hours", "r"), ("$", "r"), ("starting", "r"), ("idle", "r")],
        [(n.node, n.what, f"{n.hours:.2f}", f"{n.usd:.4f}", dollars(n.starting_usd), dollars(n.idle_usd)) for n in c.nodes],
    )  # fmt: skip
    table(
        [("job", ""), ("run", ""), ("hours", "r"), ("$", "r"), ("lost", "r"), ("step", "r"), ("$ to finish", "r")],
        [
            (j.stage or j.entrypoint[:40], j.run, f"{j.hours:.2f}", f"{j.usd:.4f}", dollars(j.lost_usd),
             f"{j.step}/{j.max_steps}" if j.step is not None else "",
             f"{j.to_finish_usd:.2f}" if j.to_finish_usd is not None else "")
            for j in c.jobs
        ],
    )  # fmt: skip
    if len(c.stages) > 1:
        table([("stage", ""), ("$", "r")], [(s, f"{usd:.4f}") for s, usd in c.stages.items()])


def table(columns: list[tuple[str, str]], rows: list[tuple[str, ...]]) -> None:
    """Prints a table, or nothing if it has no rows. columns: (header, "r" for right-aligned or "")."""
    from rich.console import Console
    from rich.table import Table

    if not rows:
        return
    made = Table(box=None, header_style="bold", pad_edge=False)
    for name, side in columns:
        made.add_column(name, justify="right" if side else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False).print(made)
