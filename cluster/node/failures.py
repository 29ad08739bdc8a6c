"""Why nothing is rented: published to waiting jobs and recorded for `status`; and a pause after repeated failures.

A node that doesn't boot, can't be logged in to or fails in its set-up costs money until it is given up. After IN_A_ROW failures of
one node type, none of that type is rented for PAUSE_S; then one more is tried. A new head (ray up, cluster head) starts at zero.
"""

from __future__ import annotations

import logging
import threading
import time

from cluster.market.base import MarketError
from cluster.money.ledger import Ledger
from lib.runtime import cluster_signals
from lib.runtime.gcs import Gcs, GcsError

log = logging.getLogger(__name__)

IN_A_ROW = 5
PAUSE_S = 30 * 60.0
AGAIN_S = 5.0
"""An unchanged reason is published again after this long, since jobs ignore old ones (cluster_signals.OLD_S)."""
NOTE_S = 60.0
"""A reason is recorded in the ledger at most this often, since the file only grows."""
MARKETS = "markets"
"""Used as node type for a failure to list the markets."""
NOTES = "rent"
"""Kind of the ledger's notes {node type: why it can't be rented, or None if it can}."""


class Paused(MarketError):
    """IN_A_ROW rentals of this node type failed in a row, so no more are tried for PAUSE_S."""


class Failures:
    """Thread-safe. address: host:port of Ray's GCS; None: nothing is published, since no job can be waiting."""

    def __init__(self, ledger: Ledger, address: str | None):
        self.ledger, self.address, self._lock = ledger, address, threading.RLock()
        self._row: dict[str, list[str]] = {}
        """Node type → failures since one of it last worked."""
        self._until: dict[str, float] = {}
        """Node type → Unix time when one more is tried."""
        self._why: dict[str, str] = {}
        self._published, self._noted = (0.0, ""), {}
        self._gcs = None

    def failed(self, node_type: str, what: str) -> None:
        """Records a failure. what: the node, and why it was given up."""
        with self._lock:
            row = self._row.setdefault(node_type, [])
            row.append(what)
            if len(row) >= IN_A_ROW:
                self._until[node_type] = time.time() + PAUSE_S

    def worked(self, node_type: str) -> None:
        """Records that Ray runs on a node of this type."""
        with self._lock:
            self._row.pop(node_type, None)
            self._until.pop(node_type, None)

    def check(self, node_type: str) -> None:
        """Raises Paused if this node type isn't to be rented now."""
        with self._lock:
            row, left = self._row.get(node_type, []), self._until.get(node_type, 0.0) - time.time()
            if len(row) >= IN_A_ROW and left > 0:
                raise Paused(
                    f"{len(row)} boxes in a row failed, the last one {row[-1]}. The next is tried in {left / 60:.0f} minutes; "
                    f"their logs: {self.ledger.path.parent}/boots. Change `image`, `setup_commands` or the ladder of "
                    f"{node_type}, and start the head again."
                )

    def cannot(self, node_type: str, why: str) -> None:
        """Records and publishes why nothing of this type can be rented now."""
        with self._lock:
            self._why[node_type] = why
            self._note(node_type, why)
            self._publish()

    def can(self, node_type: str) -> None:
        with self._lock:
            if self._why.pop(node_type, None) is not None:
                self._note(node_type, None)
                self._publish()

    def _note(self, node_type: str, why: str | None) -> None:
        at, before = self._noted.get(node_type, (0.0, None))
        if why is None or before is None or time.time() - at > NOTE_S:
            self.ledger.note(NOTES, node_type, why=why)
            self._noted[node_type] = time.time(), why

    def _publish(self) -> None:
        text = "\n".join(f"{name}: {why}" for name, why in self._why.items())
        at, before = self._published
        if self.address is None or (text == before and time.time() - at < AGAIN_S):
            return
        try:
            self._gcs = self._gcs or Gcs(self.address)
            cluster_signals.cannot_rent(self._gcs, text or None)
            self._published = time.time(), text
        except GcsError as e:
            log.warning("Publishing to Ray why nothing is rented failed: %s", e)
