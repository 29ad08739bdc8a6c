"""What runs, what it costs, and the network to it.

    python -m cluster status [--json]

Rentals of all clusters as the markets list them; the link to those that this machine can log in to, measured now; the ledger of
each cluster; and what Ray says, where its head is this machine or RAY_ADDRESS (host:port) names it.
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

from cluster import mesh
from cluster.cost import table
from cluster.ledger import Ledger, cluster_of, clusters, root
from cluster.link import Link, measure
from cluster.market import Rental
from cluster.markets import MARKETS
from cluster.sweep import everything, rate


@dataclass
class Led:
    """A cluster that this machine has a ledger of."""

    cluster: str
    usd: float
    usd_per_hour: float
    asked_s: float
    """How long ago its markets were asked."""
    cap: dict | None
    """What was decided when its money was out."""


@dataclass
class RayNodes:
    address: str
    nodes: list[dict]
    """name, ip, status, total and available resources"""


def main(argv: list[str]) -> int:
    """0: shown. 1: a market could not be asked. 2: there is no API key of any."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="everything, to be read by programs")
    args = parser.parse_args(argv)
    found, without_key, failed = everything()
    for why in [*without_key, *failed]:
        print(f"Left out: {why}", file=sys.stderr)
    now = time.time()
    with ThreadPoolExecutor(8) as pool:
        links = list(pool.map(link, found))
    led = [_led(name, now) for name in clusters()]
    ray = _ray(os.environ.get("RAY_ADDRESS") or f"{mesh.ip(mesh.HEAD)}:{mesh.GCS_PORT}")
    if args.json:
        rentals = [
            asdict(r) | {"link": asdict(x) if isinstance(x, Link) else x} for r, x in zip(found, links, strict=True)
        ]
        shown = {"rentals": rentals, "clusters": [asdict(c) for c in led], "ray": asdict(ray) if ray else None}
        print(json.dumps(shown | {"left_out": [*without_key, *failed]}, indent=1))
    else:
        if not found:
            whole = not failed and len(without_key) < len(MARKETS)
            print("Nothing is rented." if whole else "What is rented isn't known: not every market could be asked.")
        _show(found, links, led, ray, now)
    return 2 if len(without_key) == len(MARKETS) else 1 if failed else 0


def link(r: Rental) -> Link | str:
    """Measured, or why not."""
    folder = root() / cluster_of(r.label)
    if r.state != "running" or r.ssh is None or not (folder / "key").exists():
        return ""
    from cluster.folder import Folder

    options = Folder(cluster_of(r.label)).ssh_options(f"{r.market}-{r.id}") | {
        "BatchMode": "yes",
        "ConnectTimeout": "8",
    }
    host, port = r.ssh
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    try:
        return measure(["ssh", *words, "-p", str(port), f"root@{host}"])
    except OSError as e:
        return str(e)


def _led(cluster: str, now: float) -> Led:
    ledger = Ledger(cluster)
    return Led(cluster, ledger.spent(now), ledger.rate(), now - ledger.polled(), ledger.notes("budget").get("cap"))


def _ray(address: str) -> RayNodes | None:
    """None: nobody answers there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except (OSError, ValueError):
        return None
    from ray._raylet import GcsClient
    from ray.autoscaler.v2.sdk import get_cluster_resource_state
    from ray.core.generated.autoscaler_pb2 import NodeStatus
    from ray.exceptions import RayError

    try:
        state = get_cluster_resource_state(GcsClient(address=address))
    except RayError:  # it answers no more, as a head that is just ending
        return None
    return RayNodes(address, [
        {
            "name": n.instance_id, "ip": n.node_ip_address, "status": NodeStatus.Name(n.status).lower(),
            "total": dict(n.total_resources), "available": dict(n.available_resources),
        }
        for n in state.node_states if n.status != NodeStatus.DEAD
    ])  # fmt: skip


def _show(found: list[Rental], links: list[Link | str], led: list[Led], ray: RayNodes | None, now: float) -> None:
    columns = [("cluster", ""), ("rental", ""), ("GPU", ""), ("", ""), ("state", ""), ("age", "r"), ("$/h", "r")]
    columns += [("round trip", "r"), ("MB/s up", "r"), ("down", "r"), ("", "")]
    rows = []
    for r, x in zip(found, links, strict=True):
        measured = (
            (f"{x.round_trip_ms:.1f} ms", f"{x.up_mb_s:.1f}", f"{x.down_mb_s:.1f}")
            if isinstance(x, Link)
            else ("",) * 3
        )
        why = x if isinstance(x, str) and x else r.why
        gpu = f"{r.count} × {r.gpu}" if r.count else "none"
        rows.append((
            cluster_of(r.label), f"{r.market}-{r.id}", gpu, "spot" if r.spot else "on demand", r.state,
            f"{(now - r.created) / 3600:.1f} h", f"{rate(r):.3f}", *measured, why,
        ))  # fmt: skip
    table(columns, rows)
    for c in led:
        asked = f"asked its markets {c.asked_s:.0f} s ago" if c.asked_s < 3600 else "isn't led from here"
        print(f"{c.cluster}: ${c.usd:.2f} spent, ${c.usd_per_hour:.3f} an hour, {asked}")
        if c.cap:
            print(f"  its budget of ${c.cap['total_usd']:.2f} is spent: raise budget.total_usd to go on")
    if ray:
        print(f"Ray at {ray.address}:")
        used = lambda n: ", ".join(  # noqa: E731
            f"{n['total'][k] - n['available'].get(k, 0):g} of {n['total'][k]:g} {k}" for k in ("CPU", "GPU") if k in n["total"]
        )  # fmt: skip
        table(
            [("node", ""), ("address", ""), ("", ""), ("used", "")],
            [(n["name"], n["ip"], n["status"], used(n)) for n in ray.nodes],
        )
