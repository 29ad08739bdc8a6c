"""The head's periodic work, done even if no market answers: records jobs in the ledger and enforces the budget."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import yaml

from cluster.market import tags
from cluster.money.budget import Budget
from cluster.money.ledger import Ledger
from cluster.money.metered import Kept
from cluster.money.rental_record import Entry
from cluster.node import lost
from cluster.node.watchdog import HEARTBEAT
from lib.runtime import cluster_signals, node_types
from lib.runtime.gcs import Gcs

log = logging.getLogger(__name__)

EVERY_S = 5.0


def gcs_address() -> str | None:
    """Returns host:port of Ray's GCS in the autoscaler's process; None in any other (`ray up`, this project's commands)."""
    return next((a.split("=", 1)[1] for a in sys.argv if a.startswith("--gcs-address=")), None)


def autoscaling_config() -> dict:
    """Returns the cluster's YAML as given to Ray's autoscaler, in whose process this runs."""
    [path] = [a.split("=", 1)[1] for a in sys.argv if a.startswith("--autoscaling-config=")]
    return yaml.safe_load(Path(path).expanduser().read_text())


class Steward(threading.Thread):
    """A daemon thread. address: host:port of Ray's GCS."""

    def __init__(self, ledger: Ledger, budget: Budget, markets: Mapping[str, Kept], address: str):
        super().__init__(daemon=True, name="steward")
        self.ledger, self.budget, self.markets, self.address = ledger, budget, markets, address
        self.state, self.published = "ok", False

    def run(self) -> None:
        while True:
            try:
                if not self.published:  # jobs choose their device from the node types
                    node_types.publish(self._gcs(), autoscaling_config())
                    self.published = True
                self.turn(time.time())
            except Exception:  # keep running: the budget must be enforced on the next turn
                log.exception("The steward tries again in %.0f s.", EVERY_S)
            time.sleep(EVERY_S)

    def turn(self, now: float) -> None:
        state = self.budget.enforce(
            self.ledger,
            now,
            self.markets,
            self._is_head,
            self._tell,
            lambda: cluster_signals.busy(self._gcs()),
            self._drain,
        )
        if state != self.state:
            log.warning("Budget: %s (was %s), $%.4f spent.", state, self.state, self.ledger.spent(now))
            self.state = state
        # Feeds the watchdog of a rented head. If enforcing the budget fails for long, the head ends, and then its workers by theirs.
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
        cluster_signals.tell(self._gcs(), cluster_signals.Stop(text, deadline, usd_per_hour))

    def _drain(self, entries: list[Entry]) -> None:
        try:
            lost.tell(self.address, {e.node for e in entries})
        except Exception:  # the nodes are destroyed even if Ray can't be reached, since they cost money
            log.exception("Ray could not be notified that its nodes are being destroyed.")


def note_jobs(ledger: Ledger, gcs) -> None:
    """Records in the ledger every job of this Ray that changed: its times, its nodes and its last checkpoint."""
    known = ledger.notes("job")
    for job in cluster_signals.jobs(gcs):
        training = job.pop("state")
        state = asdict(training) | {"nodes": list(training.nodes), "training_began": training.began} if training else {}
        key, fields = f"{job['began']:.3f}-{job['id']}", {**state, **job}
        before = {k: v for k, v in known.get(key, {}).items() if k != "at"}
        if before != fields:
            ledger.note("job", key, **fields)
