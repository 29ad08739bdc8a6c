"""This process's state of the cluster's rentals: their tags, their numbers in the mesh, and which of them are gone."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from ray.autoscaler import tags as ray

from cluster.market import tags
from cluster.market.base import Rental
from cluster.node import mesh
from cluster.node.autoscaler_config import Settings


@dataclass
class Node:
    rental: Rental
    tags: dict[str, str]
    """As set by Ray in this process; for a rental made by another process, decoded from its label."""
    made: float = 0.0
    """time.monotonic() when this process rented it; 0: another process did."""
    running: float | None = None
    """time.monotonic() when it was first seen running."""
    reached: bool = False
    """Whether this process has logged in to it."""
    ending: bool = False
    """Whether this process is destroying it, so that its disappearance from the list is expected."""
    tunnel: mesh.Tunnel | None = None
    offered: str = ""
    """Offer.machine: not every market's list of rentals identifies the machine."""

    @property
    def place(self) -> str:
        """The key by which a bad machine is remembered (cluster/market/bad_machines.py)."""
        return self.offered or self.rental.machine

    @property
    def type(self) -> str:
        """Its key in available_node_types."""
        return self.tags.get(ray.TAG_RAY_USER_NODE_TYPE, "")

    @property
    def is_head(self) -> bool:
        return self.tags.get(ray.TAG_RAY_NODE_KIND) == ray.NODE_KIND_HEAD

    def fault(self, settings: Settings, leads: bool) -> str | None:
        """Returns why the node is unusable, or None. The login is judged only by the process that sets the node up: it rented the node,
        or it leads (the autoscaler's process)."""
        rental, now = self.rental, time.monotonic()
        if rental.state == "lost":
            return rental.why or "lost"
        if rental.state == "starting" and time.time() - rental.created > settings.boot_minutes * 60:
            return f"it has not started within boot_minutes, {settings.boot_minutes:g} ({rental.why})"
        if rental.state == "running":
            self.running = self.running or now
            ours = self.made or (leads and self.tags.get(ray.TAG_RAY_NODE_KIND) == ray.NODE_KIND_WORKER)
            if ours and not self.reached and now - self.running > settings.login_minutes * 60:
                return f"no login within login_minutes, {settings.login_minutes:g}"
        return None


class Nodes:
    """Thread-safe."""

    def __init__(self, cluster: str):
        self.cluster, self.lock = cluster, threading.RLock()
        self._nodes: dict[str, Node] = {}
        self._ended: dict[str, float] = {}
        """Node id → time.monotonic() when it was given up or destroyed; a market may list it a little longer."""
        self._reserved: set[int] = set()
        """Mesh numbers of rentals that are being created."""
        self._last = mesh.HEAD

    def all(self) -> dict[str, Node]:
        with self.lock:
            return dict(self._nodes)

    def get(self, node_id: str) -> Node | None:
        with self.lock:
            return self._nodes.get(node_id)

    def add(self, node_id: str, node: Node) -> None:
        with self.lock:
            self._nodes[node_id] = node

    def take_in(self, listed: list[Rental], orphans: set[str], began: float) -> list[str]:
        """Takes in the markets' lists. began: time.monotonic() before they were requested. Returns ids of nodes not listed any more."""
        mine = {f"{r.market}-{r.id}": r for r in listed if tags.decode(r.label)[0] == self.cluster}
        with self.lock:
            for id, rental in mine.items():
                node = self._nodes.get(id)
                if node:
                    node.rental = rental
                elif id not in self._ended and id not in orphans:
                    self._nodes[id] = Node(rental, tags.decode(rental.label)[1])
            return [id for id, node in self._nodes.items() if id not in mine and node.made < began]

    def undead(self, listed: list[Rental], before: float) -> list[str]:
        """Returns ids of rentals that are still listed although they were ended before that time."""
        with self.lock:
            return [id for r in listed if self._ended.get(id := f"{r.market}-{r.id}", before) < before]

    def end(self, node_id: str) -> Node | None:
        """Removes a node and closes its tunnel. Returns it; None if there was no such node."""
        with self.lock:
            node = self._nodes.pop(node_id, None)
            self._ended[node_id] = time.monotonic()
        if node and node.tunnel:
            node.tunnel.close()
        return node

    def reserve(self, slots: int) -> int:
        """Reserves a worker's number in the mesh, up to `slots`: of those not in use, the one used longest ago. Raises RuntimeError if
        all are in use."""
        with self.lock:
            used = self._reserved | {int(node.tags.get(tags.SLOT, 0)) for node in self._nodes.values()}
            first, count = mesh.HEAD + 1, slots - mesh.HEAD
            turn = (first + (self._last - first + 1 + i) % count for i in range(count))
            free = next((k for k in turn if k not in used), None)
            if free is None:
                raise RuntimeError(f"All {count} places in the mesh are taken.")
            self._last = free
            self._reserved.add(free)
            return free

    def release(self, slot: int) -> None:
        """Ends a reservation, once the rental is added or wasn't created."""
        with self.lock:
            self._reserved.discard(slot)
