"""Why nothing is rented: said to the jobs that wait for it, noted for `status`; and an end to renting what fails every time.

A box that doesn't boot, can't be logged in to or breaks in its set-up costs until it is given up. After IN_A_ROW of one node
type none of that type is rented for PAUSE_S; then one more is tried. A new head (ray up, cluster head) begins at nought.
"""

from __future__ import annotations

import logging
import threading
import time

from cluster.ledger import Ledger
from cluster.market import MarketError
from lib import notice
from lib.gcs import Gcs, GcsError

log = logging.getLogger(__name__)

IN_A_ROW = 5
PAUSE_S = 30 * 60.0
AGAIN_S = 5.0
"""The same is published again after so long: what jobs read grows old (notice.OLD_S)."""
NOTE_S = 60.0
"""And noted in the ledger, whose file only grows."""
MARKETS = "markets"
"""In the place of a node type: the markets could not be asked."""
NOTES = "rent"
"""Kind of the ledger's notes {node type: why it can't be rented, None: it can}."""


class Paused(MarketError):
    """So many of this node type failed in a row that no more are tried for a while."""


class Failures:
    """Thread-safe. address: of Ray's GCS, host:port; None: no job of this process's cluster waits."""

    def __init__(self, ledger: Ledger, address: str | None):
        self.ledger, self.address, self._lock = ledger, address, threading.RLock()
        self._row: dict[str, list[str]] = {}
        """Node type → what failed since one of it last worked."""
        self._until: dict[str, float] = {}
        """Node type → Unix time when one more is tried."""
        self._why: dict[str, str] = {}
        self._published, self._noted = (0.0, ""), {}
        self._gcs = None

    def failed(self, node_type: str, what: str) -> None:
        """what: the node, and why it was given up."""
        with self._lock:
            row = self._row.setdefault(node_type, [])
            row.append(what)
            if len(row) >= IN_A_ROW:
                self._until[node_type] = time.time() + PAUSE_S

    def worked(self, node_type: str) -> None:
        """Ray runs on one of it."""
        with self._lock:
            self._row.pop(node_type, None)
            self._until.pop(node_type, None)

    def check(self, node_type: str) -> None:
        """Raises Paused."""
        with self._lock:
            row, left = self._row.get(node_type, []), self._until.get(node_type, 0.0) - time.time()
            if len(row) >= IN_A_ROW and left > 0:
                raise Paused(
                    f"{len(row)} boxes in a row failed, the last one {row[-1]}. The next is tried in {left / 60:.0f} minutes; "
                    f"what they printed: {self.ledger.path.parent}/boots. Change `image`, `setup_commands` or the ladder of "
                    f"{node_type}, and start the head again."
                )

    def cannot(self, node_type: str, why: str) -> None:
        """Nothing of it can be rented now."""
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
            notice.cannot_rent(self._gcs, text or None)
            self._published = time.time(), text
        except GcsError as e:
            log.warning("Ray could not be told why nothing is rented: %s", e)
