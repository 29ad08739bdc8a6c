"""What this process knows of the cluster's rentals: their tags, their numbers in the mesh, which of them are gone."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from ray.autoscaler import tags as ray

from cluster import mesh, tags
from cluster.bootstrap import Settings
from cluster.market import Rental


@dataclass
class Node:
    rental: Rental
    tags: dict[str, str]
    """As Ray set them here; of a rental that another process made, as its label says."""
    made: float = 0.0
    """time.monotonic() when this process rented it; 0: another did."""
    running: float | None = None
    """time.monotonic() when it was first seen running."""
    reached: bool = False
    """This process has logged in to it."""
    ending: bool = False
    """This process is destroying it: that no market lists it any more is no news."""
    tunnel: mesh.Tunnel | None = None
    offered: str = ""
    """The machine, as its offer named it: some markets' lists of rentals don't."""

    @property
    def place(self) -> str:
        """By which a bad one is remembered."""
        return self.offered or self.rental.machine

    @property
    def type(self) -> str:
        """Of available_node_types."""
        return self.tags.get(ray.TAG_RAY_USER_NODE_TYPE, "")

    @property
    def is_head(self) -> bool:
        return self.tags.get(ray.TAG_RAY_NODE_KIND) == ray.NODE_KIND_HEAD

    def fault(self, settings: Settings, leads: bool) -> str | None:
        """Why it is of no use, or None. Whether it can be logged in to is for those to say who set it up: this process rented it, or
        leads (the autoscaler's)."""
        rental, now = self.rental, time.monotonic()
        if rental.state == "lost":
            return rental.why or "lost"
        if rental.state == "starting" and time.time() - rental.created > settings.boot_minutes * 60:
            return f"it has not started in boot_minutes, {settings.boot_minutes:g} ({rental.why})"
        if rental.state == "running":
            self.running = self.running or now
            ours = self.made or (leads and self.tags.get(ray.TAG_RAY_NODE_KIND) == ray.NODE_KIND_WORKER)
            if ours and not self.reached and now - self.running > settings.login_minutes * 60:
                return f"no login in login_minutes, {settings.login_minutes:g}"
        return None


class Nodes:
    """Thread-safe."""

    def __init__(self, cluster: str):
        self.cluster, self.lock = cluster, threading.RLock()
        self._nodes: dict[str, Node] = {}
        self._ended: dict[str, float] = {}
        """Node id → time.monotonic() when it was given up or destroyed; a market may list it a little longer."""
        self._reserved: set[int] = set()
        """Numbers of rentals that are being made."""
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
        """What the markets list. began: time.monotonic() before they were asked. Returns the nodes that they don't list."""
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
        """Those that are listed although they were ended before that time."""
        with self.lock:
            return [id for r in listed if self._ended.get(id := f"{r.market}-{r.id}", before) < before]

    def end(self, node_id: str) -> Node | None:
        """From now on it is no node of ours. None: it was none."""
        with self.lock:
            node = self._nodes.pop(node_id, None)
            self._ended[node_id] = time.monotonic()
        if node and node.tunnel:
            node.tunnel.close()
        return node

    def reserve(self, slots: int) -> int:
        """A worker's number in the mesh, up to `slots`: none that a node has, and of the others the one used longest ago.
        Raises RuntimeError."""
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
        """The rental is known by now, or wasn't made."""
        with self.lock:
            self._reserved.discard(slot)
