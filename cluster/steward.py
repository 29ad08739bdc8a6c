"""What the head does once in a while whether the markets answer or not: notes the jobs in the ledger, and keeps to the budget."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import yaml

from cluster import lost, tags
from cluster.budget import Budget
from cluster.entry import Entry
from cluster.kept import Kept
from cluster.ledger import Ledger
from cluster.watchdog import HEARTBEAT
from lib import node_types, notice
from lib.gcs import Gcs

log = logging.getLogger(__name__)

EVERY_S = 5.0


def gcs_address() -> str | None:
    """host:port of Ray's GCS, in the autoscaler's process; None in any other (`ray up`, our commands)."""
    return next((a.split("=", 1)[1] for a in sys.argv if a.startswith("--gcs-address=")), None)


def autoscaling_config() -> dict:
    """The cluster's YAML as Ray's autoscaler, in whose process this is, has it."""
    [path] = [a.split("=", 1)[1] for a in sys.argv if a.startswith("--autoscaling-config=")]
    return yaml.safe_load(Path(path).expanduser().read_text())


class Steward(threading.Thread):
    """Ends with its process. address: of Ray's GCS."""

    def __init__(self, ledger: Ledger, budget: Budget, markets: Mapping[str, Kept], address: str):
        super().__init__(daemon=True, name="steward")
        self.ledger, self.budget, self.markets, self.address = ledger, budget, markets, address
        self.state, self.published = "ok", False

    def run(self) -> None:
        while True:
            try:
                if not self.published:  # jobs settle their device by it
                    node_types.publish(self._gcs(), autoscaling_config())
                    self.published = True
                self.turn(time.time())
            except Exception:  # whatever it is, the budget has to be kept to the next time
                log.exception("The steward tries again in %.0f s.", EVERY_S)
            time.sleep(EVERY_S)

    def turn(self, now: float) -> None:
        state = self.budget.enforce(
            self.ledger, now, self.markets, self._is_head, self._tell, lambda: notice.busy(self._gcs()), self._drain
        )
        if state != self.state:
            log.warning("Budget: %s (was %s), $%.4f spent.", state, self.state, self.ledger.spent(now))
            self.state = state
        # A rented head has a watchdog too: one that can't keep to its budget ends, and its workers' watchdogs after it.
        if Path(HEARTBEAT).exists():
            Path(HEARTBEAT).touch()
        note_jobs(self.ledger, self._gcs())
        self.ledger.send()

    @staticmethod
    def _is_head(e: Entry) -> bool:
        return tags.is_head(e.label)

    def _gcs(self):
        return Gcs(self.address)

    def _tell(self, text: str, deadline: float, usd_per_hour: float) -> None:
        notice.tell(self._gcs(), notice.Stop(text, deadline, usd_per_hour))

    def _drain(self, entries: list[Entry]) -> None:
        try:
            lost.tell(self.address, {e.node for e in entries})
        except Exception:  # whatever Ray says, they go: they cost
            log.exception("Ray could not be told that its nodes go.")


def note_jobs(ledger: Ledger, gcs) -> None:
    """Notes every job of this Ray in the ledger where something of it changed: when it ran, on what, what it had saved."""
    known = ledger.notes("job")
    for job in notice.jobs(gcs):
        told = job.pop("state")
        state = asdict(told) | {"nodes": list(told.nodes), "training_began": told.began} if told else {}
        key, fields = f"{job['began']:.3f}-{job['id']}", {**state, **job}
        before = {k: v for k, v in known.get(key, {}).items() if k != "at"}
        if before != fields:
            ledger.note("job", key, **fields)
