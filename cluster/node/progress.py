"""The progress of a rental towards a Ray node: renting, loading, login, installing, Ray joined."""

from __future__ import annotations

from dataclasses import dataclass

from ray.autoscaler import tags as ray

from cluster.market.base import Rental
from cluster.money.ledger import Ledger
from cluster.node.boot_logs import BOOTS

SET_UP = {
    ray.STATUS_UNINITIALIZED: "login",
    ray.STATUS_WAITING_FOR_SSH: "login",
    ray.STATUS_SYNCING_FILES: "installing",
    ray.STATUS_SETTING_UP: "installing",
    ray.STATUS_UP_TO_DATE: "Ray joined",
    ray.STATUS_UPDATE_FAILED: "set-up failed",
}
"""Ray's set-up status of a node → the step shown."""


@dataclass(frozen=True)
class Progress:
    step: str
    """renting, loading, login, installing, Ray joined; set-up failed; lost; running (nothing is known after the boot)."""
    since: float
    """Unix time when it reached this step."""

    def says(self, now: float) -> str:
        minutes, seconds = divmod(round(max(0.0, now - self.since)), 60)
        going = self.step not in ("Ray joined", "lost")
        return f"{self.step} {minutes}:{seconds:02d}" if going else self.step


def progress(rental: Rental, ledger: Ledger | None) -> Progress:
    """Returns a rental's progress. ledger: that of its cluster; None: this machine has none, so steps after the boot are unknown."""
    e = ledger.entry(rental.market, rental.id) if ledger else None
    if rental.state == "lost":
        return Progress("lost", e.lost if e and e.lost else rental.created)
    if rental.state == "starting":
        return Progress("loading", rental.created)
    notes = ledger.history(BOOTS).get(f"{rental.market}-{rental.id}", []) if ledger else []
    if not ledger:
        return Progress("running", rental.started or rental.created)
    running = e.up if e and e.up else rental.started or rental.created
    if not notes:
        return Progress("login", running)
    step = SET_UP.get(notes[-1]["state"], "installing")
    first = next(n["at"] for i, n in enumerate(notes) if all(SET_UP.get(m["state"]) == step for m in notes[i:]))
    return Progress(step, max(first, running) if step == "login" else first)


def renting(ledger: Ledger) -> list[Progress]:
    """Returns the creates that have no answer yet."""
    return [Progress("renting", e.asked) for e in ledger.living() if e.id is None]
