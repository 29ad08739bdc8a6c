"""The caps of a cluster: `budget: {total_usd, per_hour_usd, max_hours}` in the provider section of its YAML.

Soft: nothing more is rented. Hard: the jobs are told (lib/notice.py), save and stop; then every worker is destroyed, then the
head. `enforce` is called at every poll; each call does what is due, and the ledger's notes say how far it is, so that it goes
on from there in another process after a crash at any point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

from cluster.entry import Entry
from cluster.ledger import Ledger
from cluster.market import Market, MarketError


@dataclass(frozen=True)
class Budget:
    total_usd: float | None = None
    """Of the cluster's whole life, over all its heads. None: no cap."""
    per_hour_usd: float | None = None
    """Of all its rentals at one time. None: no cap."""
    max_hours: float | None = None
    """Of the cluster's whole life, from its first rental on; the same happens then as at total_usd. None: no cap."""
    store: str | None = None
    """A folder or s3://bucket/path where the ledger is kept too: without it, what a rented head spent since its ledger was last
    fetched is forgotten where it ends by itself."""
    save_minutes: float = 5.0
    """What jobs get to save their work and everything to be destroyed, once the money or the time is out. It is kept back."""
    useful_minutes: float = 15.0
    """Nothing is rented that could be paid for less long than this."""

    @classmethod
    def read(cls, given: object) -> Budget:
        """From the YAML. Raises ValueError for an unknown key (with the nearest) or what isn't a number above 0."""
        from lib.cli import nearest

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
        """Why nothing may be rented at this price (machine and disk), or None."""
        rate, spent = ledger.rate() + usd_per_hour, ledger.spent(now)
        if cap := self._cap(ledger):
            return ended(cap)
        if self.per_hour_usd is not None and rate > self.per_hour_usd + 1e-9:
            return f"${rate:.3f} an hour with it, and budget.per_hour_usd is {self.per_hour_usd:g}"
        left_s = self._left_s(ledger, now)
        if left_s is not None and left_s <= (self.save_minutes + self.useful_minutes) * 60:
            return f"of budget.max_hours {self.max_hours:g} only {max(0.0, left_s) / 60:.0f} minutes are left"
        if self.total_usd is not None:
            left = self.total_usd - spent - rate * (self.save_minutes + self.useful_minutes) / 60
            if left <= 0:
                return (
                    f"${spent:.2f} of budget.total_usd {self.total_usd:g} are spent, and at ${rate:.3f} an hour with it the rest "
                    f"is gone in {max(0.0, self.total_usd - spent) / rate * 60 if rate else 0:.0f} minutes"
                )
        return None

    def check(self, ledger: Ledger, now: float) -> Literal["ok", "soft", "hard"]:
        """hard: what is left is for no more than save_minutes. soft: nothing may be rented, whatever its price."""
        if self._cap(ledger) or self._reached(ledger, now):
            return "hard"
        return "soft" if self.refuses(ledger, 0.0, now) else "ok"

    def _left_s(self, ledger: Ledger, now: float) -> float | None:
        """Of max_hours. None: there is no such cap, or nothing was ever rented."""
        began = ledger.began()
        return None if self.max_hours is None or began is None else began + self.max_hours * 3600 - now

    def _reached(self, ledger: Ledger, now: float) -> Literal["total_usd", "max_hours"] | None:
        """Which cap leaves only what saving takes."""
        if self.total_usd is not None and ledger.spent(now) + ledger.rate() * self.save_minutes / 60 >= self.total_usd:
            return "total_usd"
        left_s = self._left_s(ledger, now)
        return "max_hours" if left_s is not None and left_s <= self.save_minutes * 60 else None

    def _cap(self, ledger: Ledger) -> dict | None:
        """What was decided when the money or the time was out, unless that cap was raised since."""
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
        """What is due now.

        markets: {name: Kept}; is_head: whether an entry is this cluster's head; tell(text, deadline, usd_per_hour): tells the
        running jobs to save and stop, again is harmless; busy(): whether any of them still runs; drain: tells Ray that these
        nodes go. The head is destroyed last, with whatever process this is. Raises MarketError where a rental could not be
        destroyed: call again.
        """
        state = self.check(ledger, now)
        if state != "hard":
            return state
        cap = self._cap(ledger)
        if cap is None:
            # What the jobs are told and the time that they have are fixed now, whoever goes on with it.
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
        if all(e.id is not None for e in living):  # else a create has no answer: it will be listed, or given up
            for e in ledger.living():
                ledger.leave(e)
                markets[e.market].destroy(e.id)
        return "destroying"


def _told(cap: dict) -> str:
    if cap.get("reached") == "max_hours":
        return f"budget.max_hours: {cap['max_hours']:g} hours are over but for what saving takes."
    return (
        f"budget.total_usd: ${cap['spent_usd']:.2f} of ${cap['total_usd']:.2f} are spent, and the rest pays for saving."
    )


def ended(cap: dict) -> str:
    """What a cap that was reached means for who wants to rent."""
    key = cap.get("reached", "total_usd")
    return f"budget.{key} of {cap[key]:g} was reached, and everything ended. Raise it to go on"
