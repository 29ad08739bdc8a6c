"""The sum of a ledger's lines: its rentals, when each market was last listed, and the notes of other modules."""

from __future__ import annotations

import re

from cluster.market.base import Rental
from cluster.money.rental_record import Entry


class Accounts:
    def __init__(self):
        self.entries: list[Entry] = []
        """Oldest first."""
        self.by_id: dict[tuple[str, str], Entry] = {}
        """(market, id) → rental"""
        self.by_nonce: dict[str, Entry] = {}
        self.polled: dict[str, float] = {}
        """Market → Unix time when it was last listed."""
        self.notes: dict[str, dict[str, list[dict]]] = {}
        """Kind → key → all notes of it, oldest first."""

    def find(self, r: Rental) -> Entry | None:
        nonce = _nonce(r.label)
        return self.by_id.get((r.market, r.id)) or (self.by_nonce.get(nonce) if nonce else None)

    def apply(self, event: dict) -> None:
        """Applies one line. Lines of one machine arrive in order; between machines, a line may arrive before one that it follows, as
        clocks differ."""
        at = event["at"]
        match event["event"]:
            case "intent":
                e = self._asked(event["nonce"], at)
                e.market, e.nonce, e.asked = event["market"], event["nonce"], min(at, e.asked)
                e.label, e.gpu, e.count, e.spot = e.label or event["label"], event["gpu"], event["count"], event["spot"]
                e.offered_usd_per_hour, e.unattended_s = event["usd_per_hour"], event["unattended_s"]
                if e.id is not None:
                    self.by_id[e.market, e.id] = e
                e.download_usd_per_gb = event.get("download_usd_per_gb", 0.0)
            case "rented":
                e = self._asked(event["nonce"], at)
                if e.id is None:  # else it was listed before the market's answer came
                    e.id, e.ended = event["id"], None
                e.answered, e.failed = at, False
                self.by_id[e.market, e.id] = e
            case "refused":
                e = self._asked(event["nonce"], at)
                e.ended, e.why = at, event["why"]
            case "unanswered":
                self._asked(event["nonce"], at).failed = True
            case "seen":
                rental = event["rental"]
                r = Rental(**rental | {"ssh": tuple(rental["ssh"]) if rental["ssh"] else None})
                e = self.find(r)
                if e is None:
                    e = Entry(r.market, asked=r.created)
                    self.entries.append(e)
                    if nonce := _nonce(r.label):
                        self.by_nonce[nonce] = e
                e.seen_until(event["before"])
                e.see(r, at)
                self.by_id[r.market, r.id] = e
            case "gone" | "destroyed":
                e = self.by_id.get((event["market"], event["id"]))
                if e and e.ended is None:
                    e.seen_until(event.get("before"))
                    e.end(at, event["event"])
            case "poll":
                self.polled[event["market"]] = max(at, self.polled.get(event["market"], 0.0))
                for e in self.entries:
                    if e.market == event["market"] and e.ended is None and e.rental is not None:
                        e.seen_until(at)
            case "note":
                of_kind = self.notes.setdefault(event["kind"], {})
                of_kind.setdefault(event["key"], []).append({"at": at, **event["fields"]})

    def _asked(self, nonce: str, at: float) -> Entry:
        if nonce not in self.by_nonce:
            self.by_nonce[nonce] = Entry("", asked=at)
            self.entries.append(self.by_nonce[nonce])
        return self.by_nonce[nonce]


def _nonce(label: str) -> str | None:
    found = re.search(r";n=([0-9a-f]{12})", label)
    return found[1] if found else None
