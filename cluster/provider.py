"""Ray's NodeProvider over all markets: what the autoscaler asks for is rented, what is lost is destroyed and reported at once.

    provider: {type: external, module: cluster.provider.Provider, markets: [vast, runpod], network: mesh}

Ray calls it from several threads, on a laptop (`ray up`, `ray down`) and on the head (the autoscaler). What it knows comes
from the markets' lists: a node's tags are in its rental's label. A market that can't be asked raises, since an empty answer
would make Ray take every node for lost.
"""

from __future__ import annotations

import io
import logging
import os
import tarfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from ray.autoscaler import tags as ray
from ray.autoscaler.node_provider import NodeProvider

from cluster import bootstrap, ladder, lost, markets, mesh, tags, watchdog
from cluster.folder import Folder
from cluster.kept import Kept
from cluster.ledger import Ledger
from cluster.market import Order, Rental
from cluster.memory import Memory
from cluster.runner import Runner
from cluster.steward import Steward, gcs_address

log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every request, into monitor.log

HERE = "here"
"""The node id of a head that is not rented."""
STARTING_S = 600.0
"""A rental that doesn't run by then is given up: its image doesn't load."""
SSH_S = 180.0
"""So is one that runs, and can't be logged in to by then."""
STALE_S = 10.0
"""The markets are asked again when what they said is older."""
AGAIN_S = 60.0
"""So is a rental that is listed still, this long after it was destroyed."""

HEADS_MORE = 3
"""A head has this many times its workers' time: it is set up only when it has run for a while, and holds the ledger."""


@dataclass
class Node:
    """What this process knows of a rental."""

    rental: Rental
    tags: dict[str, str]
    """As Ray set them here; of a rental that another process made, as its label says."""
    made: float = 0.0
    """time.monotonic() when this process rented it; 0: another did."""
    running: float | None = None
    """time.monotonic() when it was first seen running."""
    reached: bool = False
    """This process has logged in to it."""
    tunnel: mesh.Tunnel | None = None


@dataclass
class _Known:
    nodes: dict[str, Node] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    """Node id → time.monotonic() when it was destroyed; a market may list it a little longer."""
    reserved: set[int] = field(default_factory=set)
    """Numbers in the mesh of rentals that are being made."""
    last: int = mesh.HEAD
    """The number given last: Ray must not find another node at the address of one that has just died."""


class Provider(NodeProvider):
    def __init__(self, provider_config: dict[str, Any], cluster_name: str):
        super().__init__(provider_config, cluster_name)
        self.settings = bootstrap.Settings.read(provider_config)
        self.folder = Folder(cluster_name)
        self.ledger = Ledger(cluster_name, self.settings.budget.store)
        self.markets = {
            name: Kept(markets.find(name), self.ledger, self.settings.budget, self.settings.unattended_minutes * 60)
            for name in self.settings.markets
        }
        self.memory = Memory(self.folder.path / "memory.json")
        self._known = _Known()
        self._lock = threading.RLock()
        """Around `_known`; never held while a market is asked."""
        self._asking = threading.Lock()
        self._asked = 0.0
        self._later = ThreadPoolExecutor(max_workers=4, thread_name_prefix="shoestring")
        self._here = {
            ray.TAG_RAY_NODE_KIND: ray.NODE_KIND_HEAD,
            ray.TAG_RAY_NODE_STATUS: ray.STATUS_UP_TO_DATE,
            ray.TAG_RAY_USER_NODE_TYPE: os.environ.get("RAY_NODE_TYPE_NAME", "head"),
            tags.SLOT: str(mesh.HEAD),
        }
        if address := gcs_address():
            Steward(self.ledger, self.settings.budget, self.markets, address).start()

    @staticmethod
    def fillout_available_node_types_resources(cluster_config: dict) -> dict:
        """The first that Ray calls with a YAML, and where it wants to see these."""
        return {"cluster_synced_files": []} | cluster_config

    @staticmethod
    def bootstrap_config(cluster_config: dict) -> dict:
        try:
            return bootstrap.complete(cluster_config)
        except ValueError as e:
            raise click.ClickException(str(e)) from None

    # ---- what there is

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        self.refresh()
        with self._lock:
            found = {id: node.tags for id, node in self._known.nodes.items()}
        if self.settings.here:
            found = {HERE: self._here} | found
        return [id for id, has in found.items() if all(has.get(k) == v for k, v in tag_filters.items())]

    def refresh(self) -> None:
        """Asks every market what is rented and gives up what is lost. Raises MarketError."""
        with self._asking:
            began = time.monotonic()
            listed = [rental for market in self.markets.values() for rental in market.list()]
            orphans = {f"{r.market}-{r.id}" for r in self.ledger.orphans(listed)}
            self._asked = time.monotonic()
        mine = {f"{r.market}-{r.id}": r for r in listed if tags.decode(r.label)[0] == self.cluster_name}
        with self._lock:
            for id, rental in mine.items():
                node = self._known.nodes.get(id)
                if node:
                    node.rental = rental
                elif id not in self._known.ended and id not in orphans:
                    self._known.nodes[id] = Node(rental, tags.decode(rental.label)[1])
            vanished = [id for id, n in self._known.nodes.items() if id not in mine and n.made < began]
            late = {id for id, at in self._known.ended.items() if id in mine and began - at > AGAIN_S}
            late |= orphans - self._known.ended.keys()
            faults = {id: why for id, node in self._known.nodes.items() if (why := self._fault(node))}
        for id in vanished:
            self._give_up(id, "no market lists it any more", exists=False)
        for id, why in faults.items():
            self._give_up(id, why)
        for id in late:
            self._destroy_later(id)

    def _fault(self, node: Node) -> str | None:
        """Why this node is of no use, or None."""
        rental, now = node.rental, time.monotonic()
        if rental.state == "lost":
            return rental.why or "lost"
        if rental.state == "starting" and time.time() - rental.created > STARTING_S:
            return f"it has not started in {STARTING_S:.0f} s ({rental.why})"
        if rental.state == "running":
            node.running = node.running or now
            if not node.reached and now - node.running > SSH_S:
                return f"no login in {SSH_S:.0f} s"
        return None

    def _node(self, node_id: str) -> Node | None:
        """None: gone. Raises MarketError."""
        if time.monotonic() - self._asked > STALE_S:
            self.refresh()
        with self._lock:
            return self._known.nodes.get(node_id)

    def is_running(self, node_id: str) -> bool:
        if node_id == HERE:
            return True
        node = self._node(node_id)
        return node is not None and node.rental.state == "running" and node.rental.ssh is not None

    def is_terminated(self, node_id: str) -> bool:
        return node_id != HERE and self._node(node_id) is None

    def node_tags(self, node_id: str) -> dict[str, str]:
        if node_id == HERE:
            return dict(self._here)
        with self._lock:
            node = self._known.nodes.get(node_id)
            return dict(node.tags) if node else {}

    def ssh(self, node_id: str) -> tuple[str, int] | None:
        """(host, port) of its sshd, None as long as it has none."""
        node = self._node(node_id)
        return node.rental.ssh if node else None

    def slot(self, node_id: str) -> int:
        return int(self.node_tags(node_id).get(tags.SLOT, mesh.HEAD))

    def internal_ip(self, node_id: str) -> str | None:
        if self.settings.network == "mesh":
            return mesh.ip(self.slot(node_id))
        node = self._node(node_id)
        return node.rental.private_ip if node else None

    def external_ip(self, node_id: str) -> str | None:
        if node_id == HERE:
            return mesh.ip(mesh.HEAD)
        address = self.ssh(node_id)
        return address[0] if address else None

    # ---- what changes

    def set_node_tags(self, node_id: str, tags_: dict[str, str]) -> None:
        if node_id == HERE:
            self._here.update(tags_)
            return
        with self._lock:
            node = self._known.nodes.get(node_id)
            if node is None or node.tags | tags_ == node.tags:
                return
            node.tags = node.tags | tags_
            label, rental = tags.encode(self.cluster_name, node.tags), node.rental
        # Who leads next sets a worker up again whatever its state was; the head's is read by the next `ray up`.
        if node.tags.get(ray.TAG_RAY_NODE_KIND) == ray.NODE_KIND_HEAD:
            self.markets[rental.market].label(rental.id, label)

    def create_node(self, node_config: dict, tags_: dict[str, str], count: int) -> None:
        for _ in range(count):
            slot = self._reserve(head=tags_.get(ray.TAG_RAY_NODE_KIND) == ray.NODE_KIND_HEAD)
            try:
                self._rent(node_config, {**tags_, tags.SLOT: str(slot)})
            finally:
                with self._lock:
                    self._known.reserved.discard(slot)

    def _reserve(self, head: bool) -> int:
        """A number in the mesh that no node has, and none had lately. Raises RuntimeError."""
        if head:
            return mesh.HEAD
        with self._lock:
            used = self._known.reserved | {int(n.tags.get(tags.SLOT, 0)) for n in self._known.nodes.values()}
            first, count = mesh.HEAD + 1, self.settings.slots - mesh.HEAD
            turn = [first + (self._known.last - first + 1 + i) % count for i in range(count)]
            free = [k for k in turn if k not in used]
            if not free:
                raise RuntimeError(f"All {count} places in the mesh are taken.")
            self._known.last = free[0]
            self._known.reserved.add(free[0])
            return free[0]

    def _rent(self, node_config: dict, tags_: dict[str, str]) -> None:
        order = Order(
            label=tags.encode(self.cluster_name, tags_),
            image=node_config.get("image") or self.settings.image,
            disk_gb=node_config.get("disk_gb", 20.0),
            bid_usd_per_hour=None,
            public_key=self.folder.public_key,
            start=self._watchdog(tags_),
        )
        rungs = ladder.parse(node_config["ladder"])
        offer, id = ladder.climb(rungs, self.markets, order, self.memory)
        market = offer.market
        rental = Rental(
            market, id, order.label, "starting", "just rented", offer.spot, offer.usd_per_hour, offer.disk_usd_per_hour,
            time.time(), None, offer.machine, offer.gpu, offer.count,
        )  # fmt: skip
        with self._lock:
            self._known.nodes[f"{market}-{id}"] = Node(rental, tags_, made=time.monotonic())
        log.info("Rented %s-%s: %s × %s at $%.3f/h.", market, id, offer.count, offer.gpu, offer.usd_per_hour)

    def _watchdog(self, tags_: dict[str, str]) -> str:
        """Shell commands that end the rental when its head is gone; a head when nothing on it leads the cluster any more."""
        if tags_[ray.TAG_RAY_NODE_KIND] == ray.NODE_KIND_HEAD:
            return watchdog.start(HEADS_MORE * self.settings.unattended_minutes * 60)
        head = (self._head_ip(), mesh.GCS_PORT) if self.settings.network == "flat" else None
        return watchdog.start(self.settings.unattended_minutes * 60, head)

    def terminate_node(self, node_id: str) -> None:
        if node_id == HERE:
            return
        with self._lock:
            node = self._known.nodes.get(node_id)
        if node and node.tags.get(ray.TAG_RAY_NODE_STATUS) == ray.STATUS_UPDATE_FAILED:
            self.memory.bad(node.rental.market, node.rental.machine, "its set-up failed")
        self._destroy(node_id)
        self._forget(node_id)

    def end(self) -> int:
        """Destroys all that the cluster rents, the head too; how many there were. Raises MarketError."""
        count = 0
        while True:
            self.refresh()
            with self._lock:
                left = list(self._known.nodes)
            for id in left:
                self.terminate_node(id)
            if not left:
                return count
            count += len(left)

    # ---- what is lost

    def _give_up(self, node_id: str, why: str, exists: bool = True) -> None:
        """From now on it is no node of ours; what has to be done about it happens meanwhile."""
        node = self._forget(node_id)
        if node is None:
            return
        log.warning("%s (%s) is lost: %s.", node_id, node.rental.gpu, why)
        if node.rental.state != "lost" and exists:
            self.memory.bad(node.rental.market, node.rental.machine, why)
        if exists:
            self._destroy_later(node_id)
        if node.reached:  # by this process, so Ray's head is near
            self._run_later("telling Ray", lost.tell, f"{self._head_ip()}:{mesh.GCS_PORT}", {node_id})

    def _forget(self, node_id: str) -> Node | None:
        with self._lock:
            node = self._known.nodes.pop(node_id, None)
            if node:
                self._known.ended[node_id] = time.monotonic()
        if node and node.tunnel:
            node.tunnel.close()
        return node

    def _destroy(self, node_id: str) -> None:
        market, id = node_id.split("-", 1)
        self.markets[market].destroy(id)

    def _destroy_later(self, node_id: str) -> None:
        """Where that fails it is tried again after AGAIN_S, as long as it is listed."""
        with self._lock:
            self._known.ended[node_id] = time.monotonic()
        self._run_later(f"destroying {node_id}", self._destroy, node_id)

    def _run_later(self, what: str, f, *args) -> None:
        def report(done: Future) -> None:
            if error := done.exception():
                log.error("%s failed: %s", what, error)

        self._later.submit(f, *args).add_done_callback(report)

    def _head_ip(self) -> str:
        if self.settings.network == "mesh":
            return mesh.ip(mesh.HEAD)
        return self.internal_ip(self.non_terminated_nodes({ray.TAG_RAY_NODE_KIND: ray.NODE_KIND_HEAD})[0])

    # ---- how a node is set up

    def get_command_runner(
        self, log_prefix, node_id, auth_config, cluster_name, process_runner, use_internal_ip, docker_config=None
    ) -> Runner:
        return Runner(log_prefix, node_id, self, auth_config, cluster_name, process_runner, use_internal_ip)

    def start_environment(self, node_id: str) -> dict[str, str]:
        """What `ray start` on this node has to find in its environment."""
        named = ["SHOESTRING_PACE", *(f"{name.upper()}_URL" for name in self.markets)]
        urls = {k: os.environ[k] for k in named if k in os.environ}
        if self.settings.network == "flat":
            return {"SHOESTRING_NODE": f"--node-ip-address={self.internal_ip(node_id)}"} | urls
        k = self.slot(node_id)
        options = " ".join(mesh.ray_options(k))
        return {"SHOESTRING_NODE": options, **mesh.environment(k, f"/root/{mesh.BOX}/portpin.so")} | urls

    def connect(self, node_id: str, runner: Runner) -> None:
        """Joins a worker that can be logged in to with the network. Raises CalledProcessError, RuntimeError."""
        node = self._node(node_id)
        if node is None:
            raise RuntimeError(f"{node_id} is gone.")
        node.reached = True
        if self.settings.network == "flat":
            return
        self.prepare_box(runner)
        if node.tunnel:
            node.tunnel.close()
        host, port = node.rental.ssh
        node.tunnel = mesh.Tunnel(self.folder, self.slot(node_id), self.settings.slots, node_id, host, port)
        runner.send(b"", f"bash -c {mesh.WAIT!r}")

    def prepare_box(self, runner: Runner) -> None:
        """What the mesh needs on a rented machine."""
        files = {name: path.read_bytes() for name, path in mesh.files().items()}
        files["authorized_keys"] = f"restrict,port-forwarding {self.folder.public_key}\n".encode()
        box = f'"$HOME"/{mesh.BOX}'
        runner.send(
            _packed(files),
            f"mkdir -p {box} && tar -xf - --no-same-owner -C {box} && bash {box}/mesh.sh {watchdog.HEARTBEAT}",
        )

    def hand_over(self, runner: Runner) -> None:
        """Gives a rented head what it needs to lead: this code, the cluster's key, and the markets'. Workers get none of it."""
        with self._lock:
            self._known.nodes[runner.node_id].reached = True
        for name in ("key", "key.pub", "known_hosts"):
            path = self.folder.path / name
            if path.exists():
                runner.write(path.read_bytes(), f"~/.shoestring/{self.cluster_name}/{name}", 0o600)
        for name in self.markets:
            runner.write(markets.key(name).encode(), f"~/.config/shoestring/{name}_api_key", 0o600)
        for package in (Path(__file__).parent, Path(__file__).parents[1] / "lib"):
            runner.run_rsync_up(str(package), f"{bootstrap.CODE}/{package.name}")
        if self.settings.network == "mesh":
            self.prepare_box(runner)


def _packed(files: dict[str, bytes]) -> bytes:
    """A tar archive of them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(content), 0o600, int(time.time())
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()
