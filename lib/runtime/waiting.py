"""Progress lines of a job that waits for a cluster's nodes: nodes being rented, nodes booting, and why nothing can be rented."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from lib.runtime import cluster_signals, node_types
from lib.runtime.gcs import Gcs, GcsError
from lib.runtime.logs import say

EVERY_S = 3.0
"""Seconds between polls of the cluster."""
QUIET_S = 15.0
"""Seconds within which a working autoscaler has reacted; before that no missing node is reported."""
AGAIN_S = 300.0
"""Seconds after which an unchanged line is printed again, since a boot may take that long."""


class Waiting:
    """Between begin() and end(), polls the cluster and prints a line whenever its state has changed.

    address: of the GCS. each: resources of every worker, {"CPU": 8, "GPU": 1}. placed: whether all workers are placed, so that any
    remaining demand is another job's.
    """

    def __init__(self, workers: str, each: dict[str, float], address: str, placed: Callable[[], bool] = lambda: False):
        self.workers, self.each, self.address = workers, {k: v for k, v in each.items() if v}, address
        self.placed = placed
        self.over, self.lock = threading.Event(), threading.Lock()
        self.over.set()

    def begin(self) -> None:
        """Starts the polling thread, unless it is running already."""
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

        gcs, began, printed, at = Gcs(self.address), time.monotonic(), None, 0.0
        while not over.wait(EVERY_S):
            if self.placed():
                began, printed = time.monotonic(), None  # if workers lose their nodes, the wait starts from here
                continue
            try:
                now, why = get_cluster_status(self.address), cluster_signals.reason(gcs)
            except (GcsError, RpcError):  # a busy head may answer the next time
                continue
            waited = time.monotonic() - began
            text = state(now, self.each, why, waited > QUIET_S)
            news = text and (
                re.sub(r"\d", "", text),
                bool(why),
            )  # ignoring numbers, as the dollars spent change every time
            if not text or over.is_set() or (news == printed and (why or time.monotonic() - at < AGAIN_S)):
                continue
            after = f" (after {waited / 60:.0f} min)" if waited > 60 else ""
            say(f"Waiting for {self.workers}{after}: {text}")
            printed, at = news, time.monotonic()


def of_cluster(
    workers: int | tuple[int, int], each: dict[str, float], in_groups: bool = False
) -> AbstractContextManager:
    """Returns a Waiting for workers of a joined cluster; on a local Ray, where nothing has to be rented, a null context.

    in_groups: the workers are placed together, as Ray Train's are, by placement groups of this job.
    """
    if not os.environ.get("RAY_ADDRESS"):
        return nullcontext()
    return Waiting(worded(workers, each), each, node_types.address(), *([groups_placed] if in_groups else []))


def groups_placed() -> bool:
    """Whether this job has placement groups and all of them are placed. False if the cluster's API doesn't answer."""
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
    """Returns the state of nodes for workers with resources `each`, from Ray's ClusterStatus; None if no such worker is waiting, or
    if the autoscaler hasn't had time to react.

    why: why the cluster can't rent (lib/runtime/cluster_signals.py). long: whether the wait has exceeded QUIET_S.
    """
    demands, nodes = status.resource_demands, [*status.active_nodes, *status.idle_nodes]
    pending = _asked([*demands.placement_group_demand, *demands.ray_task_actor_demand], each)
    at_all = _asked(demands.cluster_constraint_demand, each)  # remains while the workers run
    there = sum(_room(n.total_resources(), each) for n in nodes)
    if not pending and at_all <= there:
        return None
    up = Counter(n.ray_node_type_name for n in nodes if _room(n.total_resources(), each))
    ids = {n.instance_id for n in nodes}  # a node that has just joined is still listed as pending
    booting = Counter(n.ray_node_type_name for n in status.pending_nodes if n.instance_id not in ids)
    asking = Counter()
    for launch in status.pending_launches:
        asking[launch.ray_node_type_name] += launch.count
    free = sum(_room(n.available_resources(), each) for n in nodes)
    missing = max(pending - free, at_all - there) - booting.total()
    found = [(up, "up"), (booting, "rented and booting")]
    if why and missing > 0:  # launches under way would fail too, so they aren't listed
        before = _listed(found)
        what = f"{before}; no more can be rented:" if before else "nothing can be rented:"
        return "\n  ".join([what, *why.splitlines()]) if "\n" in why else f"{what} {why}"
    if booting or asking:
        return _listed([*found, (asking, "being rented")])
    none = "no node is free, and none is being rented. `ray status` shows what the nodes are used for"
    return none if long and missing > 0 else None


def _asked(demands, each: dict[str, float]) -> int:
    """Returns how many workers with resources `each` the demands contain."""
    return sum(d.count for demand in demands for d in demand.bundles_by_count if _room(d.bundle, each))


def _listed(stages: list[tuple[Counter, str]]) -> str:
    return "; ".join(f"{n} × {name} {what}" for counts, what in stages for name, n in sorted(counts.items()))


def _room(resources: dict[str, float], each: dict[str, float]) -> int:
    return int(min(resources.get(what, 0) // amount for what, amount in each.items()))


def worded(workers: int | tuple[int, int], each: dict[str, float]) -> str:
    """Returns "2 workers (1 GPU and 8 CPU cores each)". workers: a number, or (fewest, most) for an elastic group."""
    few, most = workers if isinstance(workers, tuple) else (workers, workers)
    parts = [f"{each['GPU']:g} GPU"] if each.get("GPU") else []
    cores = each.get("CPU", 0)
    parts += [f"{cores:g} CPU core{'s' if cores != 1 else ''}"] if cores else []
    many = f"{few} to {most} workers" if few != most else f"{most} worker{'s' if most != 1 else ''}"
    return f"{many} ({' and '.join(parts)}{' each' if most != 1 else ''})"
