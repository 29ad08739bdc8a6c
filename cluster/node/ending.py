"""Destroying rentals: immediately or in the background, after saving their logs and ledger, with retries."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from cluster.market import tags
from cluster.market.base import MarketError, Refused
from cluster.money.journal import Damaged
from cluster.money.ledger import Ledger
from cluster.money.metered import Kept
from cluster.node import boot_logs, head_ledger
from cluster.node.key_folder import Folder
from cluster.node.nodes import Node, Nodes

log = logging.getLogger(__name__)

TRIES, AGAIN_S = 5, 2.0
"""Attempts to destroy all rentals of a cluster, and seconds between two."""


class Ending:
    """Thread-safe. leads: whether this process is the head's, which writes the cluster's ledger itself."""

    def __init__(self, folder: Folder, ledger: Ledger, markets: Mapping[str, Kept], nodes: Nodes, leads: bool):
        self.folder, self.ledger, self.markets, self.nodes, self.leads = folder, ledger, markets, nodes, leads
        self._fetched: set[str] = set()
        """Heads whose ledger was fetched, or for which that was tried and failed."""
        self._later = ThreadPoolExecutor(max_workers=4, thread_name_prefix="shoestring")

    def destroy(self, node_id: str) -> None:
        market, id = node_id.split("-", 1)
        self.markets[market].destroy(id)

    def destroy_later(self, node_id: str, failed: Node | None = None, why: str = "") -> None:
        """Destroys in the background. If that fails, the provider tries again as long as the rental is listed. failed: the node, if its
        boot failed, so that its logs are saved."""
        self.nodes.end(node_id)
        self.later(f"destroying {node_id}", self._end, node_id, failed, why)

    def later(self, what: str, f, *args) -> None:
        def report(done: Future) -> None:
            if error := done.exception():
                log.error("%s failed: %s", what, error)

        self._later.submit(f, *args).add_done_callback(report)

    def keep_log(self, node_id: str, node: Node, why: str) -> None:
        path = boot_logs.keep(self.folder, self.markets[node.rental.market], node.rental, why)
        log.warning("%s: its logs are in %s.", node_id, path)

    def fetch_ledger(self, node_id: str, node: Node) -> None:
        """Fetches the ledger of a head that was up, once, before any of its cluster is destroyed; a failure is logged with the age of
        the last copy."""
        if self.leads or node_id in self._fetched or node_id not in self.ledger.notes(head_ledger.LED):
            return
        self._fetched.add(node_id)
        try:
            if node.rental.ssh is None:
                raise OSError("it has no SSH address")
            head_ledger.fetch_from(self.ledger, node_id, node.rental.ssh)
            self.ledger.note(head_ledger.LED, node_id, fetched=True)
        except (OSError, Damaged) as e:
            at = self.ledger.taken(node_id)
            known = f"as of {(time.time() - at) / 60:.0f} minutes ago" if at else "as far as this machine saw it"
            log.warning(
                "The ledger of the head %s can't be fetched (%s). What it rented is counted %s.", node_id, e, known
            )

    def all(self) -> int:
        """Destroys all rentals of the cluster, head and lost ones included, and returns their number. A failure doesn't stop the rest
        and is retried. Raises MarketError if it persists."""
        ended: set[str] = set()
        for left in reversed(range(TRIES)):
            failed, listed = None, []
            for market in self.markets.values():
                try:
                    listed += market.list()
                except MarketError as e:
                    failed = e
            mine = {f"{r.market}-{r.id}" for r in listed if tags.decode(r.label)[0] == self.ledger.cluster}
            new = mine - ended
            for id in new:
                try:
                    self.destroy(id)
                except MarketError as e:
                    failed = e
                    continue
                self.nodes.end(id)
                ended.add(id)
            if failed and (isinstance(failed, Refused) or not left):
                raise failed
            if failed:
                time.sleep(AGAIN_S)
            elif not new:  # a market may list a destroyed rental a little longer
                break
        return len(ended)

    def _end(self, node_id: str, failed: Node | None, why: str) -> None:
        try:
            if failed:
                self.keep_log(node_id, failed, why)
        finally:
            self.destroy(node_id)
