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
these lines add up to, here and on the cluster's other machines (copies.py); several processes may write it. Costs are the market's own prices over the market's own times. Where
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

from cluster.accounts import Accounts
from cluster.copies import Copies, Others, union
from cluster.entry import Entry
from cluster.journal import Damaged, Journal, parsed
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
        self._accounts = Accounts()
        self._written: dict[str, float] = {}
        """When this process last wrote a poll of a market."""
        self._unpriced: set[str] = set()
        self._journal = Journal(self.path)
        self._others = Others(self.path.parent)
        self._copies: Copies | None = None
        self._stored: list[list[dict]] = []
        self._mine: set[str] = set()
        """Nonces of what was asked for from this machine."""
        self.refresh()
        self._join(store)

    # -- what it knows ---------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Reads what other processes added."""
        if self.path.exists() or self._others.changed():
            with self._locked():
                pass

    def entries(self) -> list[Entry]:
        """All rentals there ever were, oldest first."""
        self.refresh()
        return list(self._accounts.entries)

    def living(self) -> list[Entry]:
        """Those that may still cost something, among them creates whose outcome isn't known yet (id None)."""
        return [e for e in self.entries() if e.living]

    def entry(self, market: str, id: str) -> Entry | None:
        self.refresh()
        return self._accounts.by_id.get((market, id))

    def spent(self, now: float, since: float = 0.0) -> float:
        """Dollars between two Unix times."""
        return sum(e.usd(now, since) for e in self.entries())

    def began(self) -> float | None:
        """Unix time of the first rental. None: there was none."""
        return min((e.asked for e in self.entries() if e.id is not None), default=None)

    def rate(self) -> float:
        """Dollars per hour of all that lives, once it is up."""
        return sum(e.usd_per_hour for e in self.living())

    def polled(self) -> float:
        """When a market was last asked for this cluster: its head was alive then."""
        self.refresh()
        return max(self._accounts.polled.values(), default=0.0)

    def notes(self, kind: str) -> dict[str, dict]:
        """{key: last note of it} of one kind."""
        return {key: notes[-1] for key, notes in self.history(kind).items()}

    def history(self, kind: str) -> dict[str, list[dict]]:
        """{key: all notes of it, oldest first}"""
        self.refresh()
        return dict(self._accounts.notes.get(kind, {}))

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
        what["download_usd_per_gb"] = offer.download_usd_per_gb
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

    def observe(self, market: str, rentals: list[Rental], at: float, whole: bool = True, leads: bool = True) -> None:
        """Takes in what `Market.list` returned. rentals: all of the account; at: Unix time before `list` was called.

        whole: False where these are only some. leads: False where it isn't the cluster's head that asked.
        """
        with self._locked():
            mine = {r.id: self._priced(r) for r in rentals if cluster_of(r.label) == self.cluster}
            new = []
            for r in mine.values():
                e = self._accounts.find(r)
                if e is None or e.rental != r or e.ended is not None:
                    new.append({"event": "seen", "at": at, "before": e and e.seen, "rental": asdict(r)})
            for e in self._accounts.entries if whole else []:
                if e.market != market or e.ended is not None or e.id in mine:
                    continue
                if e.id is not None and at > (e.answered or e.asked):
                    new.append({"event": "gone", "at": at, "before": e.seen, "market": market, "id": e.id})
                late = e.asked + UNLISTED_S + (0.0 if e.failed else UNANSWERED_S)
                if e.id is None and at > late and not any(e.nonce in r.label for r in mine.values()):
                    new.append({"event": "refused", "at": at, "nonce": e.nonce, "why": "no answer, and never listed"})
            if not whole or not leads:
                self._append(new)
                return
            poll = {"event": "poll", "at": at, "market": market}
            if at - self._written.get(market, 0.0) >= POLL_S:
                new.append(poll)
                self._written[market] = at
            self._append(new)
            self._accounts.apply(poll)

    def orphans(self, rentals: list[Rental], everyones: bool = False) -> list[Rental]:
        """Those of this cluster that exist although their `create` never returned: nobody waits for them. To be destroyed.

        everyones: also those that other machines asked for, which only the head can judge: a copy of its ledger may have ended
        before the answer that came.
        """
        self.refresh()
        found = [(r, self._accounts.find(r)) for r in rentals if cluster_of(r.label) == self.cluster]
        late = time.time() - UNANSWERED_S
        return [
            r
            for r, e in found
            if e
            and e.nonce
            and e.answered is None
            and (e.failed or e.asked < late)
            and (everyones or e.nonce in self._mine)
        ]

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

    # -- what other machines wrote ---------------------------------------------------------------------------------

    @property
    def machine(self) -> str:
        """The name of this machine among those that write the cluster's ledger; of a rented head, its node id."""
        return self._others.me()

    @property
    def stored(self) -> bool:
        """Whether copies outlive the machines."""
        return self._copies is not None

    def files(self) -> dict[str, bytes]:
        """All that is known here: {machine: what it wrote}."""
        mine = self.path.read_bytes() if self.path.exists() else b""
        return self._others.files() | {self.machine: mine[: mine.rfind(b"\n") + 1]}

    def take(self, machine: str, lines: bytes) -> None:
        """What another machine wrote, all of it so far. Raises Damaged where it is no ledger: the machine may be a stranger's."""
        whole = lines[: lines.rfind(b"\n") + 1]  # without one that is being written
        try:
            seen = Accounts()
            for event in parsed(whole, Path(machine)):
                seen.apply(event)
        except (KeyError, TypeError, ValueError) as e:
            raise Damaged(f"What {machine} sent is no ledger: {type(e).__name__}: {e}") from None
        self._others.take(machine, whole)
        self.refresh()

    def taken(self, machine: str) -> float | None:
        """Unix time when its lines came. None: never."""
        return self._others.taken(machine)

    def _join(self, store: str | None) -> None:
        """Begins again with what is in the store."""
        known = self.notes("store").get("place", {}).get("address")
        if store and store != known:
            self.note("store", "place", address=store)
        if not (store or known):
            return
        self._copies = Copies(store or known, self.cluster, self._others)
        self._stored = self._copies.others(needed=store is not None)
        with self._locked():
            self._rebuild()

    def _rebuild(self) -> None:
        """Begins again with what every machine wrote."""
        mine = self._journal.events()
        self._accounts = Accounts()
        self._mine = {e["nonce"] for e in mine if e["event"] == "intent"}
        for event in union([mine, *self._others.read(), *self._stored]):
            self._accounts.apply(event)

    @contextmanager
    def _locked(self):
        """Around what reads or writes: nobody else does, and what others wrote is taken in."""
        with self._journal.locked() as new:
            if self._others.changed():
                self._rebuild()
            else:
                self._take_in(new)
            yield

    def _take_in(self, mine: list[dict]) -> None:
        for event in mine:
            self._accounts.apply(event)
            if event["event"] == "intent":
                self._mine.add(event["nonce"])

    def _append(self, events: list[dict]) -> None:
        self._journal.append(events)
        self._take_in(events)

    def _write(self, **event) -> None:
        with self._locked():
            self._append([{"at": time.time(), **event}])

    def _priced(self, r: Rental) -> Rental:
        """With the price that it had, or was rented for, where the market says none; for one that nobody here rented that is
        nothing, and the log says so."""
        if r.usd_per_hour is not None:
            return r
        e = self._accounts.find(r)
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
