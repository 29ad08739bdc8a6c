"""Ray's NodeProvider over all markets: what the autoscaler asks for is rented, what is lost is destroyed and reported at once.

    provider: {type: external, module: cluster.provider.Provider, markets: [vast, runpod], network: mesh}

Ray calls it from several threads, on a laptop (`ray up`, `ray down`) and on the head (the autoscaler). What it knows comes
from the markets' lists: a node's tags are in its rental's label. A market that can't be asked raises, since an empty answer
would make Ray take every node for lost.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

import click
from ray.autoscaler import tags as ray
from ray.autoscaler.node_provider import NodeProvider

from cluster import bootstrap, config_schema, head_ledger, ladder, lost, markets, mesh, programs, tags, watchdog
from cluster.boots import BOOTS
from cluster.ending import Ending
from cluster.failures import MARKETS, Failures
from cluster.folder import Folder
from cluster.kept import Kept
from cluster.ledger import Ledger
from cluster.market import MarketError, Order, Rental
from cluster.memory import Memory
from cluster.nodes import Node, Nodes
from cluster.reminder import Reminder
from cluster.runner import Runner
from cluster.steward import Steward, gcs_address

log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every request, into monitor.log

HERE = "here"
"""The node id of a head that is not rented."""
STALE_S = 10.0
"""The markets are asked again when what they said is older."""
AGAIN_S = 60.0
"""So is a rental that is listed still, this long after it was destroyed."""
WAIT_S = 2.0
"""So is a head that boots, by `ray up`."""
HEADS_MORE = 3
"""A head has this many times its workers' time: it is set up only when it has run for a while, and holds the ledger."""


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
        self.nodes = Nodes(cluster_name)
        self._asking = threading.Lock()
        self._asked = 0.0
        self._here = {
            ray.TAG_RAY_NODE_KIND: ray.NODE_KIND_HEAD,
            ray.TAG_RAY_NODE_STATUS: ray.STATUS_UP_TO_DATE,
            ray.TAG_RAY_USER_NODE_TYPE: os.environ.get("RAY_NODE_TYPE_NAME", "head"),
            tags.SLOT: str(mesh.HEAD),
        }
        self._leads = gcs_address()
        """Where Ray's GCS is, in the autoscaler's process."""
        self._reminder = Reminder(self.nodes)
        self.failures = Failures(self.ledger, self._leads)
        self.ending = Ending(self.folder, self.ledger, self.markets, self.nodes, leads=self._leads is not None)
        if self._leads:
            Steward(self.ledger, self.settings.budget, self.markets, self._leads).start()

    @staticmethod
    def fillout_available_node_types_resources(cluster_config: dict) -> dict:
        """The first that Ray calls with a YAML, before it checks that by its schema. What is raised here Ray prints as a warning and
        goes on, so that a mistake ends the command itself."""
        config = {"cluster_synced_files": []} | cluster_config
        try:
            programs.check(*programs.TO_RENT_A_HEAD)
            config_schema.check(config)
        except ValueError as e:
            click.echo("\n  ".join(["The cluster can't be led from here:", *str(e).splitlines()]), err=True)
            raise SystemExit(2) from None
        return config

    @staticmethod
    def bootstrap_config(cluster_config: dict) -> dict:
        try:
            return bootstrap.complete(cluster_config)
        except ValueError as e:
            raise click.ClickException(str(e)) from None

    # ---- what there is

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        self.refresh()
        found = {id: node.tags for id, node in self.nodes.all().items()}
        if self.settings.here:
            found = {HERE: self._here} | found
        return [id for id, has in found.items() if all(has.get(k) == v for k, v in tag_filters.items())]

    def refresh(self) -> None:
        """Asks every market what is rented and gives up what is lost. Raises MarketError."""
        with self._asking:
            began = time.monotonic()
            try:
                listed = [rental for market in self.markets.values() for rental in market.list()]
            except MarketError as e:
                self.failures.cannot(MARKETS, str(e))
                raise
            self.failures.can(MARKETS)
            orphans = {
                f"{r.market}-{r.id}"
                for r in self.ledger.orphans(listed, everyones=self._leads is not None)
                if not tags.taken_up(r.label)
            }
            self._asked = time.monotonic()
        for id in self.nodes.take_in(listed, orphans, began):
            self.give_up(id, "no market lists it any more", exists=False)
        for id, node in self.nodes.all().items():
            if why := node.fault(self.settings, leads=self._leads is not None):
                self.give_up(id, why)
        for id in {*self.nodes.undead(listed, began - AGAIN_S), *orphans}:
            self.ending.destroy_later(id)

    def _node(self, node_id: str) -> Node | None:
        """None: gone. Raises MarketError."""
        if time.monotonic() - self._asked > STALE_S:
            self.refresh()
        return self.nodes.get(node_id)

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
        node = self.nodes.get(node_id)
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
        with self.nodes.lock:
            node = self.nodes.get(node_id)
            if node is None or node.tags | tags_ == node.tags:
                return
            node.tags = node.tags | tags_
            label, rental = tags.encode(self.cluster_name, node.tags), node.rental
        self._note_boot(node_id, node, tags_)
        # Who leads next sets a worker up again whatever its state was; the head's is read by the next `ray up`.
        if node.is_head:
            self._reminder.watch(node_id)
            self.markets[rental.market].label(rental.id, label)

    def _note_boot(self, node_id: str, node: Node, tags_: dict[str, str]) -> None:
        """How far it is, in the ledger, where `status` finds it."""
        state = tags_.get(ray.TAG_RAY_NODE_STATUS)
        if not state:
            return
        self.ledger.note(BOOTS, node_id, state=state)
        if state == ray.STATUS_UP_TO_DATE:
            self.failures.worked(node.type)
            if node.is_head:
                self.ledger.note(head_ledger.LED, node_id)

    def create_node(self, node_config: dict, tags_: dict[str, str], count: int) -> None:
        head = tags_.get(ray.TAG_RAY_NODE_KIND) == ray.NODE_KIND_HEAD
        node_type = tags_.get(ray.TAG_RAY_USER_NODE_TYPE, "")
        if head and not self._leads:  # what earlier heads spent counts, and this one is told
            for copy in head_ledger.fetch(self.cluster_name):
                if said := copy.says(time.time()):
                    log.warning("%s: %s", self.cluster_name, said)
        for _ in range(count):
            slot = mesh.HEAD if head else self.nodes.reserve(self.settings.slots)
            try:
                self.failures.check(node_type)
                node_id = self._rent(node_config, {**tags_, tags.SLOT: str(slot)})
            except MarketError as e:
                self.failures.cannot(node_type, str(e))
                raise
            finally:
                self.nodes.release(slot)
            self.failures.can(node_type)
            if head and not self._leads:
                self._reminder.watch(node_id)
                self._wait(node_id)

    def _wait(self, node_id: str) -> None:
        """Until it runs: `ray up` itself waits for no longer than 15 minutes, and shows nothing. Raises ClickException."""
        said = ""
        while not self.is_running(node_id):
            node = self.nodes.get(node_id)
            if node is None:
                raise click.ClickException(f"The head {node_id} did not boot, and was ended. Type ray up again.")
            if node.rental.why != said:
                said = node.rental.why
                click.echo(
                    f"{node_id}: {said}, {time.time() - node.rental.created:.0f} s (boot_minutes: {self.settings.boot_minutes:g})"
                )
            time.sleep(WAIT_S)

    def _rent(self, node_config: dict, tags_: dict[str, str]) -> str:
        """Its node id."""
        order = Order(
            label=tags.encode(self.cluster_name, tags_),
            image=node_config.get("image") or self.settings.image,
            disk_gb=node_config.get("disk_gb", 20.0),
            bid_usd_per_hour=None,
            public_key=self.folder.public_key,
            start=self._watchdog(tags_),
            registry=markets.registry(self.settings.registry, self.settings.runpod_registry),
        )
        rungs = ladder.parse(node_config["ladder"])
        offer, id = ladder.climb(rungs, self.markets, order, self.memory)
        market = offer.market
        rental = Rental(
            market, id, order.label, "starting", "just rented", offer.spot, offer.usd_per_hour, offer.disk_usd_per_hour,
            time.time(), None, offer.machine, offer.gpu, offer.count,
        )  # fmt: skip
        self.nodes.add(f"{market}-{id}", Node(rental, tags_, made=time.monotonic(), offered=offer.machine))
        log.info("Rented %s-%s: %s × %s at $%.3f/h.", market, id, offer.count, offer.gpu, offer.usd_per_hour)
        return f"{market}-{id}"

    def _watchdog(self, tags_: dict[str, str]) -> str:
        """Shell commands that end the rental when its head is gone; a head when nothing on it leads the cluster any more."""
        if tags_[ray.TAG_RAY_NODE_KIND] == ray.NODE_KIND_HEAD:
            return watchdog.start(HEADS_MORE * self.settings.unattended_minutes * 60)
        head = (self._head_ip(), mesh.GCS_PORT) if self.settings.network == "flat" else None
        return watchdog.start(self.settings.unattended_minutes * 60, head)

    def terminate_node(self, node_id: str) -> None:
        if node_id == HERE:
            return
        node = self.nodes.get(node_id)
        if node and node.is_head:
            self.ending.fetch_ledger(node_id, node)
        if node and node.tags.get(ray.TAG_RAY_NODE_STATUS) == ray.STATUS_UPDATE_FAILED:
            self._failed(node_id, node, "its set-up failed")
            self.ending.keep_log(node_id, node, "its set-up failed")
        if node:
            node.ending = True
        self.ending.destroy(node_id)
        self.nodes.end(node_id)

    def terminate_nodes(self, node_ids: list[str]) -> None:
        """`ray down`: all of them, the head first; and before anything ends, what its ledger knows of them is here."""
        for node_id in sorted(node_ids, key=lambda id: not ((node := self.nodes.get(id)) and node.is_head)):
            self.terminate_node(node_id)

    def end(self) -> int:
        """Destroys all that the cluster rents, the head and what is lost too; how many there were. Raises MarketError."""
        return self.ending.all()

    # ---- what is lost

    def give_up(self, node_id: str, why: str, exists: bool = True) -> None:
        """From now on it is no node of ours; what has to be done about it happens meanwhile."""
        node = self.nodes.end(node_id)
        if node is None or (node.ending and not exists):
            return
        log.warning("%s (%s) is lost: %s.", node_id, node.rental.gpu, why)
        boots = node.made and node.tags.get(ray.TAG_RAY_NODE_STATUS) != ray.STATUS_UP_TO_DATE
        taken = node.rental.spot and (node.rental.state == "lost" or not exists)  # by who bid more: nothing failed
        if boots and not taken:
            self._failed(node_id, node, why)
        elif node.rental.state != "lost" and exists:
            self.memory.bad(node.rental.market, node.place, why)
        if exists:
            self.ending.destroy_later(node_id, node if boots else None, why)
        if self._leads:
            self.ending.later(f"telling Ray of {node_id}", lost.tell, self._leads, {node_id})

    def _failed(self, node_id: str, node: Node, why: str) -> None:
        """It was rented here, and never worked."""
        if node.rental.state != "lost":
            self.memory.bad(node.rental.market, node.place, why)
        self.failures.failed(node.type, f"{node_id}: {why}")

    def _head_ip(self) -> str:
        if self.settings.network == "mesh":
            return mesh.ip(mesh.HEAD)
        return self.internal_ip(self.non_terminated_nodes({ray.TAG_RAY_NODE_KIND: ray.NODE_KIND_HEAD})[0])

    # ---- how a node is set up: join.py

    def get_command_runner(
        self, log_prefix, node_id, auth_config, cluster_name, process_runner, use_internal_ip, docker_config=None
    ) -> Runner:
        return Runner(self, node_id, auth_config, cluster_name, process_runner)
