"""Every rental of a cluster, from before it exists until it is gone, and what it cost.

An append-only file of JSON lines, ~/.shoestring/CLUSTER/ledger.jsonl (SHOESTRING_STATE: another folder than ~/.shoestring), each
on the disk before the next step is taken:

    intent     a rental is about to be asked for; its label will carry the nonce
    rented     the market gave it an id
    refused    nothing was rented
    unanswered the call failed, and the rental may exist all the same
    seen       a rental as the market lists it, when that changed
    gone       the market lists it no more
    destroyed  we ended it
    poll       the market was asked and nothing had changed (at most every POLL_S)
    note       what others keep here: the budget's phase, jobs

So a create whose answer never came, or whose process died, is found again by the nonce in `Market.list`. The ledger is what
these lines add up to; several processes may write it. Costs are the market's own prices over the market's own times. Where
only the time between two polls is known, all of it is charged: `spent` errs towards too much.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from cluster.copies import Copies
from cluster.entry import Entry
from cluster.journal import Journal
from cluster.market import LABEL, Market, Offer, Order, Refused, Rental, Taken

log = logging.getLogger(__name__)

POLL_S = 15.0
"""How exactly the file tells when a market last answered."""
UNANSWERED_S = 300.0
"""No create takes this long: after that the process that called it has died."""
UNLISTED_S = 60.0
"""A create that failed, or died, and whose label isn't listed after this long rented nothing."""


def root() -> Path:
    return Path(os.environ.get("SHOESTRING_STATE") or Path.home() / ".shoestring")


def clusters() -> list[str]:
    """Names of the clusters that this machine has a ledger of."""
    return sorted(p.parent.name for p in root().glob("*/ledger.jsonl"))


def cluster_of(label: str) -> str:
    """The cluster whose rental has this label."""
    return re.split("[/;]", label.removeprefix(LABEL), maxsplit=1)[0]


class Ledger:
    """The ledger of one cluster. Safe between threads and processes; what others wrote is read before each use."""

    def __init__(self, cluster: str, store: str | None = None):
        """store: where copies are kept that outlive this machine, of all machines that write this cluster's ledger; None: as
        it was the last time, as far as it can be read."""
        self.cluster, self.path = cluster, root() / cluster / "ledger.jsonl"
        self._clear()
        self._written: dict[str, float] = {}
        """When this process last wrote a poll of a market."""
        self._unpriced: set[str] = set()
        self._journal = Journal(self.path)
        self._copies: Copies | None = None
        self.refresh()
        self._join(store)

    # -- what it knows ---------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Reads what other processes added."""
        if self.path.exists():
            with self._locked():
                pass

    def entries(self) -> list[Entry]:
        """All rentals there ever were, oldest first."""
        self.refresh()
        return list(self._entries)

    def living(self) -> list[Entry]:
        """Those that may still cost something, among them creates whose outcome isn't known yet (id None)."""
        return [e for e in self.entries() if e.living]

    def entry(self, market: str, id: str) -> Entry | None:
        self.refresh()
        return self._by_id.get((market, id))

    def spent(self, now: float, since: float = 0.0) -> float:
        """Dollars between two Unix times."""
        return sum(e.usd(now, since) for e in self.entries())

    def rate(self) -> float:
        """Dollars per hour of all that lives, once it is up."""
        return sum(e.usd_per_hour for e in self.living())

    def polled(self) -> float:
        """When a market was last asked for this cluster: its head was alive then."""
        self.refresh()
        return max(self._polled.values(), default=0.0)

    def notes(self, kind: str) -> dict[str, dict]:
        """{key: last note of it} of one kind."""
        return {key: notes[-1] for key, notes in self.history(kind).items()}

    def history(self, kind: str) -> dict[str, list[dict]]:
        """{key: all notes of it, oldest first}"""
        self.refresh()
        return dict(self._notes.get(kind, {}))

    # -- what happens ----------------------------------------------------------------------------------------------

    def rent(
        self,
        market: Market,
        offer: Offer,
        order: Order,
        unattended_s: float | None = None,
        refuses: Callable[[float], str | None] = lambda usd_per_hour: None,
    ) -> str:
        """`market.create`, of which nothing can get lost. Adds the tag n=NONCE to the label, which later labels must keep.

        unattended_s: after how long without a head its watchdog ends it; refuses(price): why it may not be rented at that many
        dollars an hour, asked while nobody else rents. Returns the id. Raises Taken where it may not, and what `create` raises;
        unless that is Taken or Refused, the rental may exist all the same and will be among `orphans` when it is listed.
        """
        nonce = secrets.token_hex(6)
        order = replace(order, label=f"{order.label};n={nonce}")
        price = (order.bid_usd_per_hour or offer.usd_per_hour) + offer.disk_usd_per_hour
        what = {"gpu": offer.gpu, "count": offer.count, "spot": offer.spot, "unattended_s": unattended_s}
        with self._locked():
            if why := refuses(price):
                raise Taken(why)
            self._write(event="intent", nonce=nonce, market=market.name, label=order.label, usd_per_hour=price, **what)
        try:
            id = market.create(offer, order)
        except (Taken, Refused) as e:
            self._write(event="refused", nonce=nonce, why=str(e))
            raise
        except Exception as e:
            self._write(event="unanswered", nonce=nonce, why=f"{type(e).__name__}: {e}")
            raise
        self._write(event="rented", nonce=nonce, id=id)
        return id

    def destroy(self, market: Market, id: str) -> None:
        market.destroy(id)
        self._write(event="destroyed", market=market.name, id=id)

    def observe(self, market: str, rentals: list[Rental], at: float, whole: bool = True) -> None:
        """Takes in what `Market.list` returned. rentals: all of the account; at: Unix time before `list` was called.

        whole: False where these are only some, and it isn't the cluster's head that asked.
        """
        with self._locked():
            mine = {r.id: self._priced(r) for r in rentals if cluster_of(r.label) == self.cluster}
            new = []
            for r in mine.values():
                e = self._find(r)
                if e is None or e.rental != r or e.ended is not None:
                    new.append({"event": "seen", "at": at, "before": e and e.seen, "rental": asdict(r)})
            for e in self._entries if whole else []:
                if e.market != market or e.ended is not None or e.id in mine:
                    continue
                if e.id is not None and at > (e.answered or e.asked):
                    new.append({"event": "gone", "at": at, "before": e.seen, "market": market, "id": e.id})
                late = e.asked + UNLISTED_S + (0.0 if e.failed else UNANSWERED_S)
                if e.id is None and at > late and not any(e.nonce in r.label for r in mine.values()):
                    new.append({"event": "refused", "at": at, "nonce": e.nonce, "why": "no answer, and never listed"})
            if not whole:
                self._append(new)
                return
            poll = {"event": "poll", "at": at, "market": market}
            if at - self._written.get(market, 0.0) >= POLL_S:
                new.append(poll)
                self._written[market] = at
            self._append(new)
            self._apply(poll)

    def orphans(self, rentals: list[Rental]) -> list[Rental]:
        """Those of this cluster that exist although their `create` never returned: nobody waits for them. To be destroyed."""
        self.refresh()
        found = [(r, self._find(r)) for r in rentals if cluster_of(r.label) == self.cluster]
        late = time.time() - UNANSWERED_S
        return [r for r, e in found if e and e.nonce and e.answered is None and (e.failed or e.asked < late)]

    def leave(self, e: Entry) -> None:
        """Before the rental that this runs on is destroyed: it counts as ended, here and in the store."""
        self._write(event="destroyed", market=e.market, id=e.id)
        try:
            self.send()
        except Exception:  # whatever the store does, the head goes: it costs
            log.exception("The store doesn't have the end of this ledger.")

    def send(self) -> None:
        """Brings the store up to date, where there is one."""
        if self._copies:
            self._copies.send(self.path)

    def note(self, kind: str, key: str, **fields) -> None:
        """Keeps something else beside the rentals; the last one of a key counts."""
        self._write(event="note", kind=kind, key=key, fields=fields)

    def _join(self, store: str | None) -> None:
        """Begins again with what other machines wrote, in the order in which it happened."""
        known = self.notes("store").get("place", {}).get("address")
        if store and store != known:
            self.note("store", "place", address=store)
        if not (store or known):
            return
        self._copies = Copies(store or known, self.cluster, self.path.parent)
        with self._locked():
            self._clear()
            for event in sorted(
                self._journal.events() + self._copies.others(needed=store is not None), key=lambda event: event["at"]
            ):
                self._apply(event)

    @contextmanager
    def _locked(self):
        """Around what reads or writes: nobody else does, and what others wrote is taken in."""
        with self._journal.locked() as new:
            for event in new:
                self._apply(event)
            yield

    def _append(self, events: list[dict]) -> None:
        self._journal.append(events)
        for event in events:
            self._apply(event)

    def _write(self, **event) -> None:
        with self._locked():
            self._append([{"at": time.time(), **event}])

    # -- what the lines add up to ----------------------------------------------------------------------------------

    def _clear(self) -> None:
        self._entries: list[Entry] = []
        self._by_id: dict[tuple[str, str], Entry] = {}
        self._by_nonce: dict[str, Entry] = {}
        self._polled: dict[str, float] = {}
        self._notes: dict[str, dict[str, list[dict]]] = {}

    def _priced(self, r: Rental) -> Rental:
        """With the price that it had, or was rented for, where the market says none; for one that nobody here rented that is
        nothing, and the log says so."""
        if r.usd_per_hour is not None:
            return r
        e = self._find(r)
        known = (
            e.rental.usd_per_hour
            if e and e.rental
            else max(0.0, e.offered_usd_per_hour - r.disk_usd_per_hour)
            if e
            else 0.0
        )
        if not known and r.id not in self._unpriced:
            self._unpriced.add(r.id)
            log.warning("%s doesn't say what %s costs, and it isn't known here: it counts as free.", r.market, r.id)
        return replace(r, usd_per_hour=known)

    def _find(self, r: Rental) -> Entry | None:
        nonce = re.search(r";n=([0-9a-f]{12})", r.label)
        return self._by_id.get((r.market, r.id)) or (self._by_nonce.get(nonce[1]) if nonce else None)

    def _apply(self, event: dict) -> None:
        at = event["at"]
        match event["event"]:
            case "intent":
                e = Entry(event["market"], nonce=event["nonce"], label=event["label"], asked=at)
                e.gpu, e.count, e.spot = event["gpu"], event["count"], event["spot"]
                e.offered_usd_per_hour, e.unattended_s = event["usd_per_hour"], event["unattended_s"]
                self._entries.append(e)
                self._by_nonce[e.nonce] = e
            case "rented":
                e = self._by_nonce[event["nonce"]]
                if e.id is None:  # else it was listed before the market's answer came
                    e.id, e.ended = event["id"], None
                e.answered, e.failed = at, False
                self._by_id[e.market, e.id] = e
            case "refused":
                e = self._by_nonce[event["nonce"]]
                e.ended, e.why = at, event["why"]
            case "unanswered":
                self._by_nonce[event["nonce"]].failed = True
            case "seen":
                rental = event["rental"]
                r = Rental(**rental | {"ssh": tuple(rental["ssh"]) if rental["ssh"] else None})
                e = self._find(r)
                if e is None:
                    e = Entry(r.market, asked=r.created)
                    self._entries.append(e)
                e.seen_until(event["before"])
                e.see(r, at)
                self._by_id[r.market, r.id] = e
            case "gone" | "destroyed":
                e = self._by_id.get((event["market"], event["id"]))
                if e and e.ended is None:
                    e.seen_until(event.get("before"))
                    e.end(at, event["event"])
            case "poll":
                self._polled[event["market"]] = max(at, self._polled.get(event["market"], 0.0))
                for e in self._entries:
                    if e.market == event["market"] and e.ended is None and e.rental is not None:
                        e.seen_until(at)
            case "note":
                of_kind = self._notes.setdefault(event["kind"], {})
                of_kind.setdefault(event["key"], []).append({"at": at, **event["fields"]})
