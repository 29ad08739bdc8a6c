"""The caps of a cluster: `budget: {total_usd, per_hour_usd, max_hours}` in the provider section of its YAML.

Soft: nothing more is rented. Hard: the jobs get a notice (lib/runtime/cluster_signals.py), save and stop; then every worker is destroyed, then the
head. `enforce` is called periodically (steward.py) and does whatever is due. Its progress is recorded in the ledger's notes, so
that after a crash at any point another process can continue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

from cluster.market.base import Market, MarketError
from cluster.money.ledger import Ledger
from cluster.money.rental_record import Entry


@dataclass(frozen=True)
class Budget:
    total_usd: float | None = None
    """Maximum dollars over the cluster's whole life, all its heads included. None: no cap."""
    per_hour_usd: float | None = None
    """Maximum dollars per hour of all its rentals together. None: no cap."""
    max_hours: float | None = None
    """Maximum hours from the cluster's first rental on; reaching it has the same effect as reaching total_usd. None: no cap."""
    store: str | None = None
    """A folder or s3://bucket/path for a copy of the ledger. Without it, if a rented head ends by itself, its spending since its
    ledger was last fetched is lost. None: no copy."""
    save_minutes: float = 5.0
    """Minutes reserved below total_usd and max_hours for jobs to save and for all rentals to be destroyed."""
    useful_minutes: float = 15.0
    """Nothing is rented that the remaining budget would pay for less than this many minutes."""

    @classmethod
    def read(cls, given: object) -> Budget:
        """Reads the YAML's section. Raises ValueError for an unknown key (naming the nearest) or a value that isn't above 0."""
        from lib.errors import nearest

        if not isinstance(given, Mapping):
            raise ValueError(f"provider.budget is a section of keys (total_usd, per_hour_usd), but holds {given!r}.")
        known = [f.name for f in fields(cls)]
        for key, value in given.items():
            if key not in known:
                raise ValueError(f"provider.budget.{key} is not a key of a budget.{nearest(key, known)}")
            if key == "store" and isinstance(value, str | None):
                continue
            if value is None and (key.endswith("_usd") or key == "max_hours"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"provider.budget.{key} must be a number above 0, but is {value!r}.")
        return cls(**{k: float(v) if isinstance(v, int) else v for k, v in given.items()})

    def refuses(self, ledger: Ledger, usd_per_hour: float, now: float) -> str | None:
        """Returns why nothing may be rented at this price (machine and disk), or None if it may."""
        rate, spent = ledger.rate() + usd_per_hour, ledger.spent(now)
        if cap := self._cap(ledger):
            return ended(cap)
        if self.per_hour_usd is not None and rate > self.per_hour_usd + 1e-9:
            return f"${rate:.3f} an hour with this rental, but budget.per_hour_usd is {self.per_hour_usd:g}"
        left_s = self._left_s(ledger, now)
        if left_s is not None and left_s <= (self.save_minutes + self.useful_minutes) * 60:
            return f"of budget.max_hours {self.max_hours:g} only {max(0.0, left_s) / 60:.0f} minutes are left"
        if self.total_usd is not None:
            left = self.total_usd - spent - rate * (self.save_minutes + self.useful_minutes) / 60
            if left <= 0:
                return (
                    f"${spent:.2f} of budget.total_usd {self.total_usd:g} are spent, and at ${rate:.3f} an hour with this rental the rest "
                    f"is gone in {max(0.0, self.total_usd - spent) / rate * 60 if rate else 0:.0f} minutes"
                )
        return None

    def check(self, ledger: Ledger, now: float) -> Literal["ok", "soft", "hard"]:
        """Returns the state. hard: only save_minutes are left. soft: nothing may be rented, whatever its price."""
        if self._cap(ledger) or self._reached(ledger, now):
            return "hard"
        return "soft" if self.refuses(ledger, 0.0, now) else "ok"

    def _left_s(self, ledger: Ledger, now: float) -> float | None:
        """Returns the seconds left of max_hours; None if there is no such cap or nothing was ever rented."""
        began = ledger.began()
        return None if self.max_hours is None or began is None else began + self.max_hours * 3600 - now

    def _reached(self, ledger: Ledger, now: float) -> Literal["total_usd", "max_hours"] | None:
        """Returns the cap of which only save_minutes are left, or None."""
        if self.total_usd is not None and ledger.spent(now) + ledger.rate() * self.save_minutes / 60 >= self.total_usd:
            return "total_usd"
        left_s = self._left_s(ledger, now)
        return "max_hours" if left_s is not None and left_s <= self.save_minutes * 60 else None

    def _cap(self, ledger: Ledger) -> dict | None:
        """Returns the note written when a cap was reached; None if there is none or the cap was raised since."""
        cap = ledger.notes("budget").get("cap")
        if cap is None:
            return None
        now = getattr(self, key := cap.get("reached", "total_usd"))
        return cap if now is not None and now <= cap[key] else None

    def enforce(
        self,
        ledger: Ledger,
        now: float,
        markets: Mapping[str, Market],
        is_head: Callable[[Entry], bool],
        tell: Callable[[str, float, float], None],
        busy: Callable[[], bool],
        drain: Callable[[list[Entry]], None],
    ) -> Literal["ok", "soft", "saving", "destroying"]:
        """Does whatever the budget requires now, and returns the state.

        markets: {name: Kept}; is_head: whether an entry is this cluster's head; tell(text, deadline, usd_per_hour): notifies the
        running jobs to save and stop, and may be repeated; busy(): whether any of them still runs; drain(entries): notifies Ray
        that these nodes are about to be destroyed. The head is destroyed last, and this process may end with it. Raises MarketError
        if a rental could not be destroyed: call again.
        """
        state = self.check(ledger, now)
        if state != "hard":
            return state
        cap = self._cap(ledger)
        if cap is None:
            # The jobs' notice and deadline are fixed now, whichever process continues from here.
            cap = {
                "reached": self._reached(ledger, now),
                "spent_usd": ledger.spent(now),
                "usd_per_hour": ledger.rate(),
                "total_usd": self.total_usd,
                "max_hours": self.max_hours,
                "deadline": now + self.save_minutes * 60 * 0.8,  # the rest is for destroying
                "saved": False,
            }
            ledger.note("budget", "cap", **cap)
        if not cap["saved"]:
            if now < cap["deadline"]:
                tell(_told(cap), cap["deadline"], cap["usd_per_hour"])
                if busy():
                    return "saving"
            ledger.note("budget", "cap", **{k: v for k, v in cap.items() if k != "at"} | {"saved": True})
        living = ledger.living()
        workers = [e for e in living if e.id is not None and not is_head(e)]
        if workers:
            drain(workers)
            failed = []
            for e in workers:
                try:
                    if e.market not in markets:
                        raise MarketError(f"{e.node} can't be destroyed: provider.markets has no {e.market} any more.")
                    markets[e.market].destroy(e.id)
                except MarketError as error:
                    failed.append(error)
            if failed:
                raise failed[0]
        # A create without an id is still open: wait until it is listed or counts as failed.
        if all(e.id is not None for e in living):
            for e in ledger.living():
                ledger.leave(e)
                markets[e.market].destroy(e.id)
        return "destroying"


def _told(cap: dict) -> str:
    if cap.get("reached") == "max_hours":
        return f"budget.max_hours: the {cap['max_hours']:g} hours are over, except for the time reserved for saving."
    return f"budget.total_usd: ${cap['spent_usd']:.2f} of ${cap['total_usd']:.2f} are spent, and the rest is reserved for saving."


def ended(cap: dict) -> str:
    """Returns why nothing can be rented after a cap was reached."""
    key = cap.get("reached", "total_usd")
    return f"budget.{key} of {cap[key]:g} was reached, and all rentals were ended. Raise it to continue"
