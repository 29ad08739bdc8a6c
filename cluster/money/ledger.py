"""The ledger of a cluster: every rental, from before it exists until it is gone, and its cost.

An append-only file of JSON lines, ~/.shoestring/CLUSTER/ledger.jsonl (SHOESTRING_STATE replaces ~/.shoestring). Each line is
flushed to disk before the next step is taken:

    intent     a rental is about to be requested; its label will carry the nonce
    rented     the market returned an id
    refused    nothing was rented
    unanswered the call failed, but the rental may exist
    seen       a rental as the market lists it, written when it changed
    gone       the market no longer lists it
    destroyed  this project destroyed it
    poll       the market was listed and nothing had changed (at most every POLL_S)
    note       records of other modules: the budget's phase, jobs

So a create without an answer, or whose process died, is found again in `Market.list` by its nonce. The ledger is the sum of
these lines, from this machine and the cluster's others (ledger_copies.py); several processes may write it. Costs are the market's own
prices over the market's own times. If only the interval between two polls is known, all of it is charged, so `spent` errs high.
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

from cluster.market.base import LABEL, Market, Offer, Order, Refused, Rental, Taken
from cluster.money.accounts import Accounts
from cluster.money.journal import Damaged, Journal, parsed
from cluster.money.ledger_copies import Copies, Others, union
from cluster.money.rental_record import Entry

log = logging.getLogger(__name__)

POLL_S = 15.0
"""Resolution with which the file records when a market last answered."""
UNANSWERED_S = 300.0
"""No create takes this long; after that, the process that called it is assumed dead."""
UNLISTED_S = 60.0
"""A create that failed or died rented nothing if its label isn't listed after this long."""


def root() -> Path:
    return Path(os.environ.get("SHOESTRING_STATE") or Path.home() / ".shoestring")


def clusters() -> list[str]:
    """Returns the names of the clusters that have a ledger on this machine."""
    return sorted(p.parent.name for p in root().glob("*/ledger.jsonl"))


def cluster_of(label: str) -> str:
    """Returns the cluster to which a rental with this label belongs."""
    return re.split("[/;]", label.removeprefix(LABEL), maxsplit=1)[0]


class Ledger:
    """The ledger of one cluster. Safe for threads and processes; other processes' lines are read before each use."""

    def __init__(self, cluster: str, store: str | None = None):
        """store: folder or s3:// address with copies of the ledgers of all this cluster's machines, which outlive the machines;
        None: the last one used, if it can be read."""
        self.cluster, self.path = cluster, root() / cluster / "ledger.jsonl"
        self._accounts = Accounts()
        self._written: dict[str, float] = {}
        """Market → Unix time of the last poll that this process wrote."""
        self._unpriced: set[str] = set()
        self._journal = Journal(self.path)
        self._others = Others(self.path.parent)
        self._copies: Copies | None = None
        self._stored: list[list[dict]] = []
        self._mine: set[str] = set()
        """Nonces of rentals requested from this machine."""
        self.refresh()
        self._join(store)

    # -- queries ---------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Reads lines that other processes added."""
        if self.path.exists() or self._others.changed():
            with self._locked():
                pass

    def entries(self) -> list[Entry]:
        """Returns all rentals, ended ones included, oldest first."""
        self.refresh()
        return list(self._accounts.entries)

    def living(self) -> list[Entry]:
        """Returns rentals that may still cost money, including creates whose outcome isn't known yet (id None)."""
        return [e for e in self.entries() if e.living]

    def entry(self, market: str, id: str) -> Entry | None:
        self.refresh()
        return self._accounts.by_id.get((market, id))

    def spent(self, now: float, since: float = 0.0) -> float:
        """Returns the dollars spent between two Unix times."""
        return sum(e.usd(now, since) for e in self.entries())

    def began(self) -> float | None:
        """Returns the Unix time of the first rental; None if there was none."""
        return min((e.asked for e in self.entries() if e.id is not None), default=None)

    def rate(self) -> float:
        """Returns the dollars per hour of all living rentals, counting those that are still starting as running."""
        return sum(e.usd_per_hour for e in self.living())

    def polled(self) -> float:
        """Returns the Unix time when this cluster's head last listed a market, so was alive; 0 if never."""
        self.refresh()
        return max(self._accounts.polled.values(), default=0.0)

    def notes(self, kind: str) -> dict[str, dict]:
        """Returns {key: its last note} for one kind."""
        return {key: notes[-1] for key, notes in self.history(kind).items()}

    def history(self, kind: str) -> dict[str, list[dict]]:
        """Returns {key: all its notes, oldest first} for one kind."""
        self.refresh()
        return dict(self._accounts.notes.get(kind, {}))

    # -- events ----------------------------------------------------------------------------------------------------

    def rent(
        self,
        market: Market,
        offer: Offer,
        order: Order,
        unattended_s: float | None = None,
        refuses: Callable[[float], str | None] = lambda usd_per_hour: None,
    ) -> str:
        """Calls `market.create` so that the rental can't get lost, and returns its id. Adds the tag n=NONCE to the label, which later
        labels must keep.

        unattended_s: seconds without a head after which its watchdog ends it. refuses(usd_per_hour): why the rental isn't allowed at
        that price, or None; called under the ledger's lock. Raises Taken if it isn't allowed, and whatever `create` raises; after
        anything but Taken or Refused the rental may exist, and will be among `orphans` once it is listed.
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
        """Records the result of `Market.list`. rentals: all of the account; at: Unix time before `list` was called.

        whole: False if the list is incomplete. leads: False if the caller isn't the cluster's head.
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
        """Returns this cluster's rentals whose `create` never returned. No process waits for them, so they are to be destroyed.

        everyones: include those requested by other machines. Only the head may do so: elsewhere, a copy of the head's ledger may
        lack an answer that arrived after it was copied.
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
        """Records a rental as ended, here and in the store. Called before destroying the machine that this process runs on."""
        self._write(event="destroyed", market=e.market, id=e.id)
        try:
            self.send()
        except Exception:  # the head is destroyed even if the store fails, since it costs money
            log.exception("The last lines of this ledger could not be written to the store.")

    def send(self) -> None:
        """Writes this ledger to the store, if there is one."""
        if self._copies:
            self._copies.send(self.path)

    def note(self, kind: str, key: str, **fields) -> None:
        """Records other data beside the rentals; the last note of a key is the current one."""
        self._write(event="note", kind=kind, key=key, fields=fields)

    # -- ledgers of other machines ---------------------------------------------------------------------------------

    @property
    def machine(self) -> str:
        """Name of this machine among those that write the cluster's ledger; on a rented head, its node id."""
        return self._others.me()

    @property
    def stored(self) -> bool:
        """Whether there is a store for copies that outlive the machines."""
        return self._copies is not None

    def files(self) -> dict[str, bytes]:
        """Returns all ledger files on this machine as {machine: its lines}."""
        mine = self.path.read_bytes() if self.path.exists() else b""
        return self._others.files() | {self.machine: mine[: mine.rfind(b"\n") + 1]}

    def take(self, machine: str, lines: bytes) -> None:
        """Takes in all lines of another machine so far. Raises Damaged if they are no ledger: a rented machine can't be trusted."""
        whole = lines[: lines.rfind(b"\n") + 1]  # drop an unfinished last line
        try:
            seen = Accounts()
            for event in parsed(whole, Path(machine)):
                seen.apply(event)
        except (KeyError, TypeError, ValueError) as e:
            raise Damaged(f"The file sent by {machine} is not a ledger: {type(e).__name__}: {e}") from None
        self._others.take(machine, whole)
        self.refresh()

    def taken(self, machine: str) -> float | None:
        """Returns the Unix time when a machine's lines were last taken in; None if never."""
        return self._others.taken(machine)

    def _join(self, store: str | None) -> None:
        """Opens the store, if there is one, and rebuilds the accounts with its copies."""
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
        """Rebuilds the accounts from the lines of all machines."""
        mine = self._journal.events()
        self._accounts = Accounts()
        self._mine = {e["nonce"] for e in mine if e["event"] == "intent"}
        for event in union([mine, *self._others.read(), *self._stored]):
            self._accounts.apply(event)

    @contextmanager
    def _locked(self):
        """Holds the ledger's lock around a read or write, after taking in lines that others wrote."""
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
        """Returns the rental with a price: if the market reports none, the last known one or that at rental; if neither is known, 0,
        which is logged."""
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
            log.warning("%s reports no price for %s, and the ledger has none: it counts as free.", r.market, r.id)
        return replace(r, usd_per_hour=known)
