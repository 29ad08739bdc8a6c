"""Shows what runs, what it costs, and the network links.

    python -m cluster status [--json]

Lists the rentals of all clusters at the markets with their progress (renting, loading, login, installing, Ray joined); the link to
each node that this machine can log in to, measured now; the ledger of each cluster, fetched from a rented head; why nothing can be
rented; and Ray's nodes, if the head is this machine or RAY_ADDRESS (host:port) names it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from cluster.cost import table
from cluster.market.base import Rental
from cluster.market.registry import MARKETS
from cluster.money import budget
from cluster.money.ledger import Ledger, cluster_of, clusters, root
from cluster.node import failures, head_ledger, mesh
from cluster.node.link_probe import Link, measure
from cluster.node.progress import Progress, progress, renting
from cluster.sweep import everything, rate
from lib.runtime import cluster_signals
from lib.runtime.gcs import Gcs, GcsError


@dataclass
class Led:
    """A cluster with a ledger on this machine."""

    cluster: str
    usd: float
    usd_per_hour: float
    asked_s: float
    """Seconds since its head last listed the markets."""
    cap: dict | None
    """The note written when a budget cap was reached (budget.py); None: none was."""
    renting: list[Progress]
    """Creates without an answer yet."""
    cannot_rent: dict[str, str]
    """Node type → why nothing of it can be rented, as last reported by its head."""
    incomplete: list[str]
    """Which parts of its ledger are missing here, and why."""


@dataclass
class RayNodes:
    address: str
    nodes: list[dict]
    """name, ip, status, total and available resources"""
    cannot_rent: str | None
    """Why waiting jobs get no nodes."""


def main(argv: list[str]) -> int:
    """Returns the exit code. 0: complete. 1: a market could not be reached. 2: there is no API key for any market."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    args = parser.parse_args(argv)
    found, without_key, failed = everything()
    for why in [*without_key, *failed]:
        print(f"Left out: {why}", file=sys.stderr)
    now = time.time()
    with ThreadPoolExecutor(8) as pool:
        incomplete = pool.map(head_ledger.fetch, clusters())
        links = list(pool.map(link, found))
        led = [_led(name, now, copies) for name, copies in zip(clusters(), incomplete, strict=True)]
    ledgers = {name: Ledger(name) for name in clusters()}
    steps = [progress(r, ledgers.get(cluster_of(r.label))) for r in found]
    ray = _ray(os.environ.get("RAY_ADDRESS") or f"{mesh.ip(mesh.HEAD)}:{mesh.GCS_PORT}")
    if args.json:
        rentals = [
            asdict(r) | {"link": asdict(x) if isinstance(x, Link) else x, "progress": asdict(step)}
            for r, x, step in zip(found, links, steps, strict=True)
        ]
        shown = {"rentals": rentals, "clusters": [asdict(c) for c in led], "ray": asdict(ray) if ray else None}
        print(json.dumps(shown | {"left_out": [*without_key, *failed]}, indent=1))
    else:
        if not found:
            complete = not failed and len(without_key) < len(MARKETS)
            print(
                "Nothing is rented."
                if complete
                else "It isn't known whether anything is rented: not every market could be reached."
            )
        _show(found, links, steps, led, ray, now)
    return 2 if len(without_key) == len(MARKETS) else 1 if failed else 0


def link(r: Rental) -> Link | str:
    """Measures the link to a rental. Returns why that failed, or "" if this machine can't log in to it."""
    folder = root() / cluster_of(r.label)
    if r.state != "running" or r.ssh is None or not (folder / "key").exists():
        return ""
    from cluster.node.key_folder import Folder

    node = f"{r.market}-{r.id}"
    try:
        return measure(Folder(cluster_of(r.label)).ssh(node, r.ssh, BatchMode="yes", ConnectTimeout="8"))
    except OSError as e:
        return str(e)


def _led(cluster: str, now: float, copies: list[head_ledger.Copy]) -> Led:
    ledger = Ledger(cluster)
    cannot = {name: note["why"] for name, note in ledger.notes(failures.NOTES).items() if note["why"]}
    return Led(
        cluster, ledger.spent(now), ledger.rate(), now - ledger.polled(), ledger.notes("budget").get("cap"), renting(ledger),
        cannot, [warning for copy in copies if (warning := copy.says(now))],
    )  # fmt: skip


def _ray(address: str) -> RayNodes | None:
    """Returns the state of the Ray cluster at `address` (host:port); None if no GCS answers there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except (OSError, ValueError):
        return None
    from ray.core.generated.autoscaler_pb2 import NodeStatus

    try:
        gcs = Gcs(address, timeout_s=5)
        nodes, cannot = gcs.node_states(), cluster_signals.reason(gcs)
    except GcsError:  # another program, or a head that is shutting down
        return None
    return RayNodes(address, [
        {
            "name": n.instance_id, "ip": n.node_ip_address, "status": NodeStatus.Name(n.status).lower(),
            "total": dict(n.total_resources), "available": dict(n.available_resources),
        }
        for n in nodes
    ], cannot)  # fmt: skip


def _show(
    found: list[Rental],
    links: list[Link | str],
    steps: list[Progress],
    led: list[Led],
    ray: RayNodes | None,
    now: float,
) -> None:
    columns = [("cluster", ""), ("rental", ""), ("GPU", ""), ("", ""), ("", ""), ("age", "r"), ("$/h", "r")]
    columns += [("round trip", "r"), ("MB/s up", "r"), ("down", "r"), ("", "")]
    rows = []
    for r, x, step in zip(found, links, steps, strict=True):
        measured = (
            (f"{x.round_trip_ms:.1f} ms", f"{x.up_mb_s:.1f}", f"{x.down_mb_s:.1f}")
            if isinstance(x, Link)
            else ("",) * 3
        )
        why = x if isinstance(x, str) and x else r.why
        gpu = f"{r.count} × {r.gpu}" if r.count else "none"
        rows.append((
            cluster_of(r.label), f"{r.market}-{r.id}", gpu, "spot" if r.spot else "on demand", step.says(now),
            f"{(now - r.created) / 3600:.1f} h", f"{rate(r):.3f}", *measured, why,
        ))  # fmt: skip
    table(columns, rows)
    for c in led:
        asked = f"markets listed {c.asked_s:.0f} s ago" if c.asked_s < 3600 else "not led from this machine"
        print(f"{c.cluster}: ${c.usd:.2f} spent, ${c.usd_per_hour:.3f} an hour, {asked}")
        for warning in c.incomplete:
            print(f"  {warning}")
        for step in c.renting:
            print(f"  {step.says(now)}")
        if c.cap:
            print(f"  {budget.ended(c.cap)}")
        for name, why in c.cannot_rent.items():
            print(f"  nothing can be rented for {name}: {why}")
    if ray:
        print(f"Ray at {ray.address}:")
        if ray.cannot_rent:
            print(f"Waiting jobs get no nodes. {ray.cannot_rent}")
        used = lambda n: ", ".join(  # noqa: E731
            f"{n['total'][k] - n['available'].get(k, 0):g} of {n['total'][k]:g} {k}" for k in ("CPU", "GPU") if k in n["total"]
        )  # fmt: skip
        table(
            [("node", ""), ("address", ""), ("", ""), ("used", "")],
            [(n["name"], n["ip"], n["status"], used(n)) for n in ray.nodes],
        )
