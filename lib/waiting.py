"""What a job prints while a cluster finds nodes for it: what is rented, what boots, and why nothing can be rented."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext

from lib import node_types
from lib.logs import say

EVERY_S = 3.0
"""Between two looks at the cluster."""
QUIET_S = 15.0
"""By then an autoscaler that can do something has begun."""
AGAIN_S = 300.0
"""A boot is told of again, since it may take that long."""


class Waiting:
    """Between begin() and end(), looks at the cluster and prints a line whenever it is another than before.

    address: of the GCS. each: what every worker needs, {"CPU": 8, "GPU": 1}.
    """

    def __init__(self, workers: str, each: dict[str, float], address: str):
        self.workers, self.each, self.address = workers, {k: v for k, v in each.items() if v}, address
        self.over, self.lock = threading.Event(), threading.Lock()
        self.over.set()

    def begin(self) -> None:
        """Without effect where it has begun already."""
        with self.lock:
            if self.over.is_set():
                self.over = threading.Event()
                threading.Thread(target=self._look, args=(self.over,), daemon=True, name="waiting").start()

    def end(self) -> None:
        self.over.set()

    def __enter__(self) -> Waiting:
        self.begin()
        return self

    def __exit__(self, *exc) -> None:
        self.end()

    def _look(self, over: threading.Event) -> None:
        from ray._raylet import GcsClient
        from ray.autoscaler.v2.sdk import get_cluster_status
        from ray.exceptions import RpcError

        gcs, began, told, at = GcsClient(address=self.address), time.monotonic(), None, 0.0
        while not over.wait(EVERY_S):
            try:
                now, why = get_cluster_status(self.address), _reason(gcs)
            except RpcError:  # a busy head answers the next time
                continue
            waited = time.monotonic() - began
            text = state(now, self.each, why, waited > QUIET_S)
            news = text and (re.sub(r"\d", "", text), bool(why))  # the dollars spent are other ones every time
            if not text or over.is_set() or (news == told and (why or time.monotonic() - at < AGAIN_S)):
                continue
            after = f" (after {waited / 60:.0f} min)" if waited > 60 else ""
            say(f"Waiting for {self.workers}{after}: {text}")
            told, at = news, time.monotonic()


def of_cluster(workers: int | tuple[int, int], each: dict[str, float]) -> AbstractContextManager:
    """A Waiting for workers of a cluster that was joined; on a Ray of our own, where nobody has to be waited for, nothing."""
    if not os.environ.get("RAY_ADDRESS"):
        return nullcontext()
    return Waiting(worded(workers, each), each, node_types.address())


def _reason(gcs) -> str | None:
    from lib import notice

    return getattr(notice, "reason", lambda gcs: None)(gcs)


def state(status, each: dict[str, float], why: str | None, long: bool) -> str | None:
    """What Ray's ClusterStatus says of nodes for workers of `each`; None where nobody waits for such, or it has only just begun.

    why: what keeps the cluster from renting (lib/notice.py). long: whether it was waited for longer than an autoscaler takes.
    """
    demands = status.resource_demands
    asked = [*demands.placement_group_demand, *demands.ray_task_actor_demand, *demands.cluster_constraint_demand]
    if not any(_holds(wanted.bundle, each) for demand in asked for wanted in demand.bundles_by_count):
        return None
    up = Counter(
        n.ray_node_type_name for n in [*status.active_nodes, *status.idle_nodes] if _holds(n.total_resources(), each)
    )
    asking = Counter()
    for launch in status.pending_launches:
        asking[launch.ray_node_type_name] += launch.count
    stages = (
        (up, "up"),
        (Counter(n.ray_node_type_name for n in status.pending_nodes), "rented and booting"),
        (asking, "being rented"),
    )
    if why:  # of what is being rented, it is tried again
        there = _listed(stages[:2])
        what = f"{there}; no more can be rented:" if there else "nothing can be rented:"
        return "\n  ".join([what, *why.splitlines()]) if "\n" in why else f"{what} {why}"
    if not any(counts for counts, _ in stages[1:]):
        return (
            "no node is free, and none is being rented. `ray status` shows what the nodes are used for"
            if long
            else None
        )
    return _listed(stages)


def _listed(stages: tuple[tuple[Counter, str], ...]) -> str:
    return "; ".join(f"{n} × {name} {what}" for counts, what in stages for name, n in sorted(counts.items()))


def _holds(resources: dict[str, float], each: dict[str, float]) -> bool:
    return all(resources.get(what, 0) >= amount for what, amount in each.items())


def worded(workers: int | tuple[int, int], each: dict[str, float]) -> str:
    """ "2 workers (1 GPU and 8 CPU cores each)"; of a group that may shrink, (fewest, most)."""
    few, most = workers if isinstance(workers, tuple) else (workers, workers)
    parts = [f"{each['GPU']:g} GPU"] if each.get("GPU") else []
    cores = each.get("CPU", 0)
    parts += [f"{cores:g} CPU core{'s' if cores != 1 else ''}"] if cores else []
    many = f"{few} to {most} workers" if few != most else f"{most} worker{'s' if most != 1 else ''}"
    return f"{many} ({' and '.join(parts)}{' each' if most != 1 else ''})"
