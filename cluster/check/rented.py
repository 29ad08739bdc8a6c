"""The check's own cluster: its configuration, this machine as its head, its rentals and their destruction."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from cluster import head
from cluster.check import box
from cluster.check.pipeline import Failed
from cluster.market import ladder
from cluster.market import registry as markets
from cluster.market.bad_machines import Memory
from cluster.market.base import Market, MarketError, Offer, Rental
from cluster.money.budget import Budget
from cluster.money.ledger import Ledger, cluster_of
from cluster.money.rental_record import Entry
from cluster.node import autoscaler_config, failures
from cluster.node.key_folder import Folder
from cluster.provider import Provider

REPO = Path(__file__).parents[2]
DISK_GB = 40.0
KINDS = 3
"""Rungs of the ladder: the cheapest kinds of machines, since the cheapest one may be taken."""
MINUTES = 45.0
"""Longest duration of a check, wherever it hangs, not counting the destruction of its rentals."""
END_S = 180.0
"""Seconds within which the head must have destroyed everything."""


@dataclass(frozen=True)
class Asked:
    """The check's options."""

    markets: tuple[str, ...]
    gpus: tuple[str, ...] = ()
    max_usd_per_hour: float = 1.0
    workers: int = 1
    device: str = "gpu"
    budget_usd: float = 1.0
    boot_minutes: float = 10.0
    store: str | None = None
    download: str | None = None


@dataclass
class Cluster:
    """A cluster for one check. Nothing is rented before `lead`."""

    name: str
    asked: Asked
    markets: dict[str, Market] = field(default_factory=dict)
    head: subprocess.Popen | None = None
    until: float = math.inf
    """time.monotonic() at which MINUTES are over."""

    def __post_init__(self):
        self.folder = Folder(self.name)
        self.ledger = Ledger(self.name)
        self.config_path, self.said = self.folder.path / "cluster.yaml", self.folder.path / "head.said"
        budget = {"total_usd": self.asked.budget_usd, "save_minutes": 1, "useful_minutes": 5}
        self.budget = Budget.read(budget)
        gpu = self.asked.device == "gpu"
        rows = [
            {
                "market": market, "spot": spot, "count": int(gpu), "gpus": list(self.asked.gpus), "cpus": 0 if gpu else 2,
                "max_usd_per_hour": self.asked.max_usd_per_hour, "image": image_of(market),
            }
            for market in self.asked.markets
            for spot in ((True, False) if ladder.has_spot(market) else (False,))
        ]  # fmt: skip
        self.config = {
            "cluster_name": self.name,
            "max_workers": self.asked.workers,
            "idle_timeout_minutes": MINUTES,
            "provider": {
                "type": "external", "module": "cluster.provider.Provider", "markets": list(self.asked.markets), "budget": budget,
            },
            "head_node_type": "head",
            "available_node_types": {
                "head": {"resources": {"CPU": 0}, "node_config": {}},
                "box": {
                    "resources": {"CPU": 2} | ({"GPU": 1} if gpu else {}),
                    "min_workers": 0,
                    "max_workers": self.asked.workers,
                    "node_config": {"disk_gb": DISK_GB, "ladder": rows},
                },
            },
            "initialization_commands": [box.HOLD],
            "worker_setup_commands": [box.READY],
        }  # fmt: skip

    # ---- offers

    def candidates(self) -> list[tuple[ladder.Rung, Offer]]:
        """Returns the offers that the rungs could rent, cheapest first; those that may lack a public address come last. Raises
        MarketError."""
        complete = autoscaler_config.complete(_with_head_here(self.config))
        rungs = ladder.parse(complete["available_node_types"]["box"]["node_config"]["ladder"])
        found = [
            (r, o) for r in rungs for o in self.markets[r.market].offers(r.want(DISK_GB)) if r.price(o) is not None
        ]
        return sorted(found, key=lambda row: (not row[1].public_ip, usd_per_hour(*row)))

    def narrow(self, chosen: list[tuple[ladder.Rung, Offer]]) -> None:
        """Limits the ladder to the first KINDS kinds of machine in `chosen`, in that order."""
        rows = {}
        for rung, offer in chosen:
            [row] = [
                row
                for row in self.config["available_node_types"]["box"]["node_config"]["ladder"]
                if (row["market"], row["spot"]) == (rung.market, rung.spot)
            ]
            kind = (rung.market, rung.spot, offer.gpu)
            cap = max(usd_per_hour(rung, offer), rows.get(kind, {}).get("max_usd_per_hour", 0.0))
            if kind in rows or len(rows) < KINDS:
                rows[kind] = row | {"gpus": [offer.gpu] if offer.gpu else [], "max_usd_per_hour": round(cap + 5e-5, 4)}
        self.config["available_node_types"]["box"]["node_config"]["ladder"] = list(rows.values())

    def needed_cuda(self) -> float | None:
        """Returns the CUDA version that drivers must support; None if there is no such limit."""
        rows = autoscaler_config.complete(_with_head_here(self.config))["available_node_types"]["box"]["node_config"][
            "ladder"
        ]
        return rows[0].get("min_cuda")

    # ---- this machine as its head

    def write(self) -> None:
        self.config_path.write_text(yaml.safe_dump(self.config), encoding="utf-8")

    def lead(self, progress: Callable[[str], None]) -> None:
        """Starts `python -m cluster head`, as a user would. It ends with this process and destroys its rentals."""
        self.write()
        self.until = time.monotonic() + MINUTES * 60
        environment = {
            **os.environ,
            "PYTHONPATH": head.python_path(),
            # The job waits for its box while that boots and is set up; Ray's default limit is 15 minutes.
            "RAY_JOB_START_TIMEOUT_SECONDS": str(int((self.asked.boot_minutes + 60) * 60)),
        }
        command = head.dependent("cluster", "head", "--config", str(self.config_path))
        with self.said.open("w") as file:
            self.head = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,  # a Ctrl-C reaches only this process
            )  # fmt: skip
        while "The head is up" not in self.said.read_text():
            if self.head.poll() is not None:
                raise Failed(_last(self.said.read_text(), 3) or f"exit code {self.head.returncode}")
            progress("Ray starts on this machine")
            time.sleep(0.1)

    def wait(
        self, what: Callable[[], object], seconds: float, waiting: Callable[[], str], progress: Callable[[str], None]
    ):
        """Polls what() and returns its first true value. Raises Failed if the time is over, the budget is spent, or the head or a box is
        lost. waiting() → what is being waited for, in the market's or Ray's own words."""
        give_up = time.monotonic() + seconds
        while not (found := what()):
            if cap := self.ledger.notes("budget").get("cap"):
                raise Failed(f"the budget of ${cap['total_usd']:g} is reached (--budget)")
            if self.head and self.head.poll() is not None:
                raise Failed(f"the head ended: {_last((self.folder.path / 'head.said').read_text(), 2)}")
            if lost := self.lost():
                raise Failed(lost)
            if time.monotonic() > self.until:
                raise Failed(f"the check's {MINUTES:g} minutes are over: {waiting()}")
            if time.monotonic() > give_up:
                raise Failed(f"timed out after {seconds:g} s: {waiting()}")
            progress(waiting())
            time.sleep(0.3)
        return found

    # ---- its rentals

    def rentals(self) -> list[Entry]:
        """Returns the living rentals that have an id, oldest first."""
        return [e for e in self.ledger.living() if e.id is not None]

    def lost(self) -> str | None:
        """Returns why a rented box was lost; None if none was."""
        ended = [e for e in self.ledger.entries() if e.id is not None and not e.living]
        if not ended:
            return None
        e = ended[0]
        why = Memory(self.folder.path / "memory.json").is_bad(e.market, e.rental.machine if e.rental else "")
        state = e.rental.why if e.rental and e.rental.state == "lost" else ""
        return f"{e.node} is lost: {why or state or e.why}"

    def refused(self) -> str:
        """Returns why nothing is rented, as far as the autoscaler has reported it."""
        tried = [e.why for e in self.ledger.entries() if e.id is None and e.ended is not None]
        if tried:
            return tried[-1]
        why = self.ledger.notes(failures.NOTES).get("box", {}).get("why") or ""
        return "; ".join(line.strip() for line in why.splitlines())

    def usd(self) -> float:
        return self.ledger.spent(time.time())

    # ---- their destruction

    def end(self) -> str:
        """Destroys all rentals and checks with the markets that none is left. Raises Failed with the command that destroys the rest."""
        why = ""
        if self.head:
            if self.head.poll() is None:
                self.head.send_signal(signal.SIGTERM)
            try:
                ended = self.head.wait(END_S)
            except subprocess.TimeoutExpired:
                self.head.kill()
                ended = self.head.wait()
            why = _last(self.said.read_text(), 2) if ended else ""
        left, unknown = self._left()
        if left or unknown:  # the head may have been killed
            try:
                Provider(autoscaler_config.complete(_with_head_here(self.config))["provider"], self.name).end()
            except MarketError as e:
                why = str(e)
            left, unknown = self._left()
        if left or unknown:
            found = (
                ", ".join(f"{r.market}-{r.id} ({r.state})" for r in left)
                or f"the remaining rentals are unknown: {unknown}"
            )
            raise Failed(f"{found}. {why}\nEnd it: python -m cluster sweep {self.name}")
        count = sum(e.id is not None for e in self.ledger.entries())
        return f"{count} rental{'s' * (count != 1)} ended, and {' and '.join(self.markets)} list{'s' * (len(self.markets) == 1)} none"

    def _left(self) -> tuple[list[Rental], str]:
        """Returns (this cluster's rentals in the markets' lists, why a market could not be reached or "")."""
        found, unknown = [], ""
        for market in self.markets.values():
            try:
                found += [r for r in market.list() if cluster_of(r.label) == self.name]
            except MarketError as e:
                unknown = str(e)
        return found, unknown


def usd_per_hour(rung: ladder.Rung, offer: Offer) -> float:
    """Returns the price we would pay, including the disk."""
    return rung.price(offer) + offer.disk_usd_per_hour


def image_of(market: str) -> str:
    """Returns the image in cluster/<market>.yaml."""
    return yaml.safe_load((REPO / f"cluster/{market}.yaml").read_text(encoding="utf-8"))["provider"]["image"]


def _with_head_here(config: dict) -> dict:
    config = deepcopy(config)
    config["provider"]["here"] = True
    return config


def _last(text: str, count: int) -> str:
    return " ".join(line.strip() for line in text.strip().splitlines()[-count:])


def asked_markets(names: list[str] | None) -> tuple[tuple[str, ...], dict[str, str]]:
    """Returns (markets to use, {market: why it is left out}). names: markets to consider; None: all. Markets without a key are left out."""
    found, left_out = [], {}
    for name in names or markets.MARKETS:
        try:
            markets.key(name)
            found.append(name)
        except ValueError as e:
            left_out[name] = str(e)
    return tuple(found), left_out
