"""Ray's NodeProvider over all markets: rents what the autoscaler requests, destroys lost rentals and reports them to Ray at once.

    provider: {type: external, module: cluster.provider.Provider, markets: [vast, runpod], network: mesh}

Ray calls it from several threads, on a laptop (`ray up`, `ray down`) and on the head (the autoscaler). Its state comes from the
markets' lists: a node's tags are stored in its rental's label. If a market can't be reached it raises, since Ray would take an
empty list to mean that every node is lost.
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

from cluster.market import ladder, registry, tags
from cluster.market.bad_machines import Memory
from cluster.market.base import MarketError, Order, Rental
from cluster.money.ledger import Ledger
from cluster.money.metered import Kept
from cluster.node import autoscaler_config, config_schema, head_ledger, lost, mesh, programs, watchdog
from cluster.node.boot_logs import BOOTS
from cluster.node.ending import Ending
from cluster.node.failures import MARKETS, Failures
from cluster.node.key_folder import Folder
from cluster.node.nodes import Node, Nodes
from cluster.node.reminder import Reminder
from cluster.node.ssh_runner import Runner
from cluster.node.steward import Steward, gcs_address

log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # else monitor.log gets a line for every request

HERE = "here"
"""The node id of a head that is not rented."""
STALE_S = 10.0
"""The markets' lists are fetched again when they are older than this."""
AGAIN_S = 60.0
"""A rental that is still listed this long after it was destroyed is destroyed again."""
WAIT_S = 2.0
"""How often `ray up` polls a booting head."""
HEADS_MORE = 3
"""The head's watchdog waits this many times unattended_minutes: set-up begins only after the head has run for a while, and the head
holds the ledger."""


class Provider(NodeProvider):
    def __init__(self, provider_config: dict[str, Any], cluster_name: str):
        super().__init__(provider_config, cluster_name)
        self.settings = autoscaler_config.Settings.read(provider_config)
        self.folder = Folder(cluster_name)
        self.ledger = Ledger(cluster_name, self.settings.budget.store)
        self.markets = {
            name: Kept(registry.find(name), self.ledger, self.settings.budget, self.settings.unattended_minutes * 60)
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
        """host:port of Ray's GCS in the autoscaler's process; None in any other."""
        self._reminder = Reminder(self.nodes)
        self.failures = Failures(self.ledger, self._leads)
        self.ending = Ending(self.folder, self.ledger, self.markets, self.nodes, leads=self._leads is not None)
        if self._leads:
            Steward(self.ledger, self.settings.budget, self.markets, self._leads).start()

    @staticmethod
    def fillout_available_node_types_resources(cluster_config: dict) -> dict:
        """Checks the YAML. Ray calls this first, before its own schema check, and only warns about an exception, so a mistake exits
        the command here."""
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
            return autoscaler_config.complete(cluster_config)
        except ValueError as e:
            raise click.ClickException(str(e)) from None

    # ---- state

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        self.refresh()
        found = {id: node.tags for id, node in self.nodes.all().items()}
        if self.settings.here:
            found = {HERE: self._here} | found
        return [id for id, has in found.items() if all(has.get(k) == v for k, v in tag_filters.items())]

    def refresh(self) -> None:
        """Lists the rentals of every market and gives up lost nodes. Raises MarketError."""
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
        """Returns the node, from lists at most STALE_S old; None if it is gone. Raises MarketError."""
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
        """Returns (host, port) of the node's sshd; None as long as it has none."""
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

    # ---- changes

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
        # Only the head's label is updated, which the next `ray up` reads. A new head sets its workers up again in any case.
        if node.is_head:
            self._reminder.watch(node_id)
            self.markets[rental.market].label(rental.id, label)

    def _note_boot(self, node_id: str, node: Node, tags_: dict[str, str]) -> None:
        """Records the boot state in the ledger, where `status` reads it."""
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
        if head and not self._leads:  # the spending of earlier heads counts, and the new head receives their ledgers
            for copy in head_ledger.fetch(self.cluster_name):
                if warning := copy.says(time.time()):
                    log.warning("%s: %s", self.cluster_name, warning)
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
        """Waits until the head runs; `ray up` itself gives up after 15 minutes and shows no progress. Raises ClickException."""
        shown = ""
        while not self.is_running(node_id):
            node = self.nodes.get(node_id)
            if node is None:
                raise click.ClickException(f"The head {node_id} did not boot and was destroyed. Run ray up again.")
            if node.rental.why != shown:
                shown = node.rental.why
                click.echo(
                    f"{node_id}: {shown}, {time.time() - node.rental.created:.0f} s (boot_minutes: {self.settings.boot_minutes:g})"
                )
            time.sleep(WAIT_S)

    def _rent(self, node_config: dict, tags_: dict[str, str]) -> str:
        """Rents one machine by the node's ladder and returns its node id."""
        order = Order(
            label=tags.encode(self.cluster_name, tags_),
            image=node_config.get("image") or self.settings.image,
            disk_gb=node_config.get("disk_gb", 20.0),
            bid_usd_per_hour=None,
            public_key=self.folder.public_key,
            start=self._watchdog(tags_),
            registry=registry.registry(self.settings.registry, self.settings.runpod_registry),
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
        """Returns shell commands that end a worker's rental when its head is gone, and a head's when the autoscaler on it has stopped."""
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
        """Terminates nodes for `ray down`, the head first, so that its ledger is fetched before anything is destroyed."""
        for node_id in sorted(node_ids, key=lambda id: not ((node := self.nodes.get(id)) and node.is_head)):
            self.terminate_node(node_id)

    def end(self) -> int:
        """Destroys all rentals of the cluster, head and lost ones included, and returns their number. Raises MarketError."""
        return self.ending.all()

    # ---- lost nodes

    def give_up(self, node_id: str, why: str, exists: bool = True) -> None:
        """Removes a node from the cluster at once; destroying it and reporting it to Ray happen in the background.

        exists: whether a market may still list the rental.
        """
        node = self.nodes.end(node_id)
        if node is None or (node.ending and not exists):
            return
        log.warning("%s (%s) is lost: %s.", node_id, node.rental.gpu, why)
        boots = node.made and node.tags.get(ray.TAG_RAY_NODE_STATUS) != ray.STATUS_UP_TO_DATE
        taken = node.rental.spot and (node.rental.state == "lost" or not exists)  # preempted: nothing failed
        if boots and not taken:
            self._failed(node_id, node, why)
        elif node.rental.state != "lost" and exists:
            self.memory.bad(node.rental.market, node.place, why)
        if exists:
            self.ending.destroy_later(node_id, node if boots else None, why)
        if self._leads:
            self.ending.later(f"reporting the loss of {node_id} to Ray", lost.tell, self._leads, {node_id})

    def _failed(self, node_id: str, node: Node, why: str) -> None:
        """Records a node that this process rented and that never worked."""
        if node.rental.state != "lost":
            self.memory.bad(node.rental.market, node.place, why)
        self.failures.failed(node.type, f"{node_id}: {why}")

    def _head_ip(self) -> str:
        if self.settings.network == "mesh":
            return mesh.ip(mesh.HEAD)
        return self.internal_ip(self.non_terminated_nodes({ray.TAG_RAY_NODE_KIND: ray.NODE_KIND_HEAD})[0])

    # ---- set-up: see join.py

    def get_command_runner(
        self, log_prefix, node_id, auth_config, cluster_name, process_runner, use_internal_ip, docker_config=None
    ) -> Runner:
        return Runner(self, node_id, auth_config, cluster_name, process_runner)
