"""The history of one rental, as listed by its market, and its cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cluster.market.base import Rental

WATCHDOG_S = 60.0
"""Seconds that a watchdog may take beyond its limit, to act and for its market to answer."""


@dataclass
class Charge:
    """usd_per_hour from `since` to `until` (None: still charged). machine: while the rental runs; disk: as long as it exists."""

    what: Literal["machine", "disk"]
    since: float
    until: float | None
    usd_per_hour: float

    def usd(self, begin: float, end: float) -> float:
        """Returns the dollars charged between two Unix times."""
        until = end if self.until is None else min(self.until, end)
        return max(0.0, until - max(self.since, begin)) * self.usd_per_hour / 3600


@dataclass
class Entry:
    """One rental."""

    market: str
    id: str | None = None
    """None: requested, but its id isn't known yet."""
    nonce: str | None = None
    """None: not requested through this ledger (the head that `ray up` rented, rentals left by a lost head)."""
    label: str = ""
    gpu: str = ""
    count: int = 0
    spot: bool = False
    offered_usd_per_hour: float = 0.0
    """Disk included; its price until the market lists it."""
    download_usd_per_gb: float = 0.0
    """Its host's offered price of traffic. Not part of usd(): markets don't report traffic in a documented unit."""
    asked: float = 0.0
    """Unix time of the intent; of a rental without one, of its creation."""
    answered: float | None = None
    """Unix time when `create` returned its id. None: it hasn't; if the entry has an id, the rental was found by its label."""
    failed: bool = False
    """`create` raised an error that leaves open whether the rental exists."""
    unattended_s: float | None = None
    """Seconds without a head after which it ends itself (watchdog.sh)."""
    rental: Rental | None = None
    """As last listed."""
    up: float | None = None
    """When it was first seen running."""
    seen: float | None = None
    """When it was last listed."""
    lost: float | None = None
    """When it was first seen to be lost, that is, not ended by this project."""
    ended: float | None = None
    why: str = ""
    """How it ended: gone, destroyed, or the reason of a refusal."""
    charges: list[Charge] = field(default_factory=list)

    @property
    def node(self) -> str:
        """Its node id for Ray; "" as long as it has no id."""
        return f"{self.market}-{self.id}" if self.id else ""

    @property
    def living(self) -> bool:
        return self.ended is None

    @property
    def usd_per_hour(self) -> float:
        """Its price now; of a rental that is starting, its price once it runs."""
        if self.ended is not None:
            return 0.0
        if self.rental is None:
            return self.offered_usd_per_hour
        price = self.rental.disk_usd_per_hour + (self.rental.usd_per_hour if self.rental.charged else 0.0)
        # RunPod lists a pod that doesn't run yet at $0, but it must count towards the cap.
        return max(price, self.offered_usd_per_hour) if self.rental.state == "starting" else price

    def usd(self, now: float, since: float = 0.0) -> float:
        if self.rental is None:  # it may be running; if it ended without an id, it cost nothing
            none = self.id is None and self.ended is not None
            begin = self.answered or self.asked
            return 0.0 if none else Charge("machine", begin, self.ended, self.offered_usd_per_hour).usd(since, now)
        return sum(c.usd(since, now) for c in self.charges)

    def uncertain_usd(self) -> float:
        """Returns the dollars counted between the last list with the rental and the first without it."""
        if self.ended is None or self.seen is None or self.why != "gone":
            return 0.0
        return self.usd(self.ended, self.seen)

    def seen_until(self, at: float | None) -> None:
        """Records that it was still listed unchanged at Unix time `at`."""
        if at is not None and self.seen is not None:
            self.seen = max(self.seen, at)

    def see(self, r: Rental, at: float) -> None:
        """Records how the market listed it at Unix time `at`."""
        if self.ended is not None:
            if at <= self.ended:  # this list was requested before the rental was destroyed
                return
            for c in self.charges:  # it still exists
                c.until = None if c.until == self.ended else c.until
            self.ended = None
        before, self.seen = self.seen, at
        self.id, self.label, self.rental = r.id, r.label, r
        self.gpu, self.count, self.spot = r.gpu or self.gpu, r.count or self.count, r.spot
        if r.state == "running":
            self.up, self.lost = self.up or at, None
        elif r.state == "lost":
            self.lost = self.lost or at
        runs = r.started is not None and r.charged
        self._charge("disk", r.created, r.disk_usd_per_hour, before)
        self._charge("machine", r.started, r.usd_per_hour if runs else None, before)

    def end(self, at: float, why: Literal["gone", "destroyed"]) -> None:
        """Ends its charges: it was destroyed at `at`, or no longer listed by then."""
        self.why, self.ended = why, at
        if why == "gone" and self.unattended_s and self.seen:  # no poll for longer than it outlives its head
            self.ended = min(at, self.seen + self.unattended_s + WATCHDOG_S)
        if why == "gone":
            self.lost = self.lost or self.ended
        for c in self.charges:
            c.until = max(c.since, self.ended) if c.until is None else c.until

    def _charge(self, what: str, since: float | None, usd_per_hour: float | None, before: float | None) -> None:
        """Records a price as now seen, charged since `since`. before: when the rental was last seen, not yet with this price.
        usd_per_hour None: no longer charged."""
        past = [c for c in self.charges if c.what == what]
        now = past[-1] if past and past[-1].until is None else None
        if now and now.usd_per_hour == usd_per_hour:
            return
        if now:  # a higher price counts from when the lower one was last seen
            dearer = usd_per_hour is not None and usd_per_hour > now.usd_per_hour and before is not None
            now.until = max(now.since, before if dearer else self.seen)
        if usd_per_hour is None:
            return
        if now:
            since = now.until
        elif what == "machine" and before is not None:  # it didn't run when it was last seen
            since = max(since, before)
        self.charges.append(Charge(what, since, None, usd_per_hour))
