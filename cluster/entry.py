"""One rental's life, as the market told it, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cluster.market import Rental

WATCHDOG_S = 60.0
"""What a watchdog may take to notice, and its market to answer, beyond its time."""


@dataclass
class Charge:
    """usd_per_hour from `since` until `until` (None: still). machine: while it runs; disk: as long as it exists."""

    what: Literal["machine", "disk"]
    since: float
    until: float | None
    usd_per_hour: float

    def usd(self, begin: float, end: float) -> float:
        """What of it falls between two Unix times."""
        until = end if self.until is None else min(self.until, end)
        return max(0.0, until - max(self.since, begin)) * self.usd_per_hour / 3600


@dataclass
class Entry:
    """One rental."""

    market: str
    id: str | None = None
    """None: asked for, and no id known yet."""
    nonce: str | None = None
    """None: not asked for through this ledger (the head that `ray up` rented, what a lost head left)."""
    label: str = ""
    gpu: str = ""
    count: int = 0
    spot: bool = False
    offered_usd_per_hour: float = 0.0
    """Disk included; what it counts for until the market lists it."""
    download_usd_per_gb: float = 0.0
    """What its host charges for traffic, as offered. Not part of usd(): markets don't list the traffic in a documented unit."""
    asked: float = 0.0
    """Unix time of the intent, or when it was first listed."""
    answered: float | None = None
    """When `create` returned its id. None: it hasn't; a rental of this entry was found by its label."""
    failed: bool = False
    """`create` raised something that leaves open whether it exists."""
    unattended_s: float | None = None
    """After how long without a head it ends itself (watchdog.sh)."""
    rental: Rental | None = None
    """As last listed."""
    up: float | None = None
    """When it was first seen running."""
    seen: float | None = None
    """When it was last listed."""
    lost: float | None = None
    """When it was first seen to answer no more, without our doing."""
    ended: float | None = None
    why: str = ""
    """Of its end."""
    charges: list[Charge] = field(default_factory=list)

    @property
    def node(self) -> str:
        """Its name as a node of Ray; "" as long as it has no id."""
        return f"{self.market}-{self.id}" if self.id else ""

    @property
    def living(self) -> bool:
        return self.ended is None

    @property
    def usd_per_hour(self) -> float:
        """What it costs now, or will as soon as it is up."""
        if self.ended is not None:
            return 0.0
        if self.rental is None:
            return self.offered_usd_per_hour
        price = self.rental.disk_usd_per_hour + (self.rental.usd_per_hour if self.rental.charged else 0.0)
        # RunPod lists a pod that doesn't run yet at $0; its place below the cap isn't free.
        return max(price, self.offered_usd_per_hour) if self.rental.state == "starting" else price

    def usd(self, now: float, since: float = 0.0) -> float:
        if self.rental is None:  # it may be running for all we know; where there is no id after all, it cost nothing
            none = self.id is None and self.ended is not None
            begin = self.answered or self.asked
            return 0.0 if none else Charge("machine", begin, self.ended, self.offered_usd_per_hour).usd(since, now)
        return sum(c.usd(since, now) for c in self.charges)

    def uncertain_usd(self) -> float:
        """How much of it was charged for the time between the last list that had it and the first that hadn't."""
        if self.ended is None or self.seen is None or self.why != "gone":
            return 0.0
        return self.usd(self.ended, self.seen)

    def seen_until(self, at: float | None) -> None:
        """It was listed then, too, as it was before."""
        if at is not None and self.seen is not None:
            self.seen = max(self.seen, at)

    def see(self, r: Rental, at: float) -> None:
        """Takes in how the market listed it at Unix time `at`."""
        if self.ended is not None:
            if at <= self.ended:  # this list was under way when it was destroyed
                return
            for c in self.charges:  # it isn't gone after all
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
        """Ends what it costs: it was destroyed at `at`, or wasn't listed any more by then."""
        self.why, self.ended = why, at
        if why == "gone" and self.unattended_s and self.seen:  # nobody asked for longer than it lives alone
            self.ended = min(at, self.seen + self.unattended_s + WATCHDOG_S)
        if why == "gone":
            self.lost = self.lost or self.ended
        for c in self.charges:
            c.until = max(c.since, self.ended) if c.until is None else c.until

    def _charge(self, what: str, since: float | None, usd_per_hour: float | None, before: float | None) -> None:
        """usd_per_hour is charged since `since`, as now seen, and not yet when last seen (before). None: no more of it."""
        past = [c for c in self.charges if c.what == what]
        now = past[-1] if past and past[-1].until is None else None
        if now and now.usd_per_hour == usd_per_hour:
            return
        if now:  # a higher price is charged since it was last seen with the lower one
            dearer = usd_per_hour is not None and usd_per_hour > now.usd_per_hour and before is not None
            now.until = max(now.since, before if dearer else self.seen)
        if usd_per_hour is None:
            return
        if now:
            since = now.until
        elif what == "machine" and before is not None:  # it didn't run when it was last seen
            since = max(since, before)
        self.charges.append(Charge(what, since, None, usd_per_hour))
