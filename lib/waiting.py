"""What a job prints while a cluster finds nodes for it: what is rented, what boots, and why nothing can be rented."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from lib import node_types, notice
from lib.gcs import Gcs, GcsError
from lib.logs import say

EVERY_S = 3.0
"""Between two looks at the cluster."""
QUIET_S = 15.0
"""By then an autoscaler that can do something has begun."""
AGAIN_S = 300.0
"""A boot is told of again, since it may take that long."""


class Waiting:
    """Between begin() and end(), looks at the cluster and prints a line whenever it is another than before.

    address: of the GCS. each: what every worker needs, {"CPU": 8, "GPU": 1}. placed: whether all of them have their places, so that who
    still waits is another job.
    """

    def __init__(self, workers: str, each: dict[str, float], address: str, placed: Callable[[], bool] = lambda: False):
        self.workers, self.each, self.address = workers, {k: v for k, v in each.items() if v}, address
        self.placed = placed
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
        from ray.autoscaler.v2.sdk import get_cluster_status
        from ray.exceptions import RpcError

        gcs, began, told, at = Gcs(self.address), time.monotonic(), None, 0.0
        while not over.wait(EVERY_S):
            if self.placed():
                began, told = time.monotonic(), None  # should they lose their places, they wait from now on
                continue
            try:
                now, why = get_cluster_status(self.address), notice.reason(gcs)
            except (GcsError, RpcError):  # a busy head answers the next time
                continue
            waited = time.monotonic() - began
            text = state(now, self.each, why, waited > QUIET_S)
            news = text and (re.sub(r"\d", "", text), bool(why))  # the dollars spent are other ones every time
            if not text or over.is_set() or (news == told and (why or time.monotonic() - at < AGAIN_S)):
                continue
            after = f" (after {waited / 60:.0f} min)" if waited > 60 else ""
            say(f"Waiting for {self.workers}{after}: {text}")
            told, at = news, time.monotonic()


def of_cluster(
    workers: int | tuple[int, int], each: dict[str, float], in_groups: bool = False
) -> AbstractContextManager:
    """A Waiting for workers of a cluster that was joined; on a Ray of our own, where nobody has to be waited for, nothing.

    in_groups: the workers are placed together, as Ray Train's are, by placement groups of this job.
    """
    if not os.environ.get("RAY_ADDRESS"):
        return nullcontext()
    return Waiting(worded(workers, each), each, node_types.address(), *([groups_placed] if in_groups else []))


def groups_placed() -> bool:
    """Whether this job has placement groups, and all of them their nodes. False where the cluster's API doesn't answer."""
    import ray
    from ray.util.state import list_placement_groups
    from ray.util.state.exception import RayStateApiException

    job = ray.get_runtime_context().get_job_id()
    try:
        groups = list_placement_groups(filters=[("creator_job_id", "=", job), ("state", "!=", "REMOVED")])
    except RayStateApiException:
        return False
    return bool(groups) and all(g.state == "CREATED" for g in groups)


def state(status, each: dict[str, float], why: str | None, long: bool) -> str | None:
    """What Ray's ClusterStatus says of nodes for workers of `each`; None where nobody waits for such, or it has only just begun.

    why: what keeps the cluster from renting (lib/notice.py). long: whether it was waited for longer than an autoscaler takes.
    """
    demands, nodes = status.resource_demands, [*status.active_nodes, *status.idle_nodes]
    pending = _asked([*demands.placement_group_demand, *demands.ray_task_actor_demand], each)
    at_all = _asked(demands.cluster_constraint_demand, each)  # stays while they work
    there = sum(_room(n.total_resources(), each) for n in nodes)
    if not pending and at_all <= there:
        return None
    up = Counter(n.ray_node_type_name for n in nodes if _room(n.total_resources(), each))
    ids = {n.instance_id for n in nodes}  # one that has just joined is still among those that boot
    booting = Counter(n.ray_node_type_name for n in status.pending_nodes if n.instance_id not in ids)
    asking = Counter()
    for launch in status.pending_launches:
        asking[launch.ray_node_type_name] += launch.count
    free = sum(_room(n.available_resources(), each) for n in nodes)
    missing = max(pending - free, at_all - there) - booting.total()
    found = [(up, "up"), (booting, "rented and booting")]
    if why and missing > 0:  # what is being rented then is tried in vain
        before = _listed(found)
        what = f"{before}; no more can be rented:" if before else "nothing can be rented:"
        return "\n  ".join([what, *why.splitlines()]) if "\n" in why else f"{what} {why}"
    if booting or asking:
        return _listed([*found, (asking, "being rented")])
    none = "no node is free, and none is being rented. `ray status` shows what the nodes are used for"
    return none if long and missing > 0 else None


def _asked(demands, each: dict[str, float]) -> int:
    """How many workers of `each` there are in them."""
    return sum(d.count for demand in demands for d in demand.bundles_by_count if _room(d.bundle, each))


def _listed(stages: list[tuple[Counter, str]]) -> str:
    return "; ".join(f"{n} × {name} {what}" for counts, what in stages for name, n in sorted(counts.items()))


def _room(resources: dict[str, float], each: dict[str, float]) -> int:
    return int(min(resources.get(what, 0) // amount for what, amount in each.items()))


def worded(workers: int | tuple[int, int], each: dict[str, float]) -> str:
    """ "2 workers (1 GPU and 8 CPU cores each)"; of a group that may shrink, (fewest, most)."""
    few, most = workers if isinstance(workers, tuple) else (workers, workers)
    parts = [f"{each['GPU']:g} GPU"] if each.get("GPU") else []
    cores = each.get("CPU", 0)
    parts += [f"{cores:g} CPU core{'s' if cores != 1 else ''}"] if cores else []
    many = f"{few} to {most} workers" if few != most else f"{most} worker{'s' if most != 1 else ''}"
    return f"{many} ({' and '.join(parts)}{' each' if most != 1 else ''})"
