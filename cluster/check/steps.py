"""The steps of a check, in order."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable

from cluster.check import report
from cluster.check.box import MARKS, Box
from cluster.check.jobs import Jobs, joined, store_environment
from cluster.check.pipeline import Failed, NotAskedFor, Pipeline
from cluster.check.rented import MINUTES, Cluster, usd_per_hour
from cluster.market import registry, tags
from cluster.market.base import MarketError
from cluster.money.rental_record import Entry
from cluster.node import mesh

STEPS = [
    "key accepted",
    "offer found",
    "this machine leads",
    "rented",
    "boot",
    "SSH login",
    "GPU driver",
    "disk",
    "link to this machine",
    "download",
    "set-up",
    "torch sees the GPU",
    "store reached from the box",
    "Ray joined over the mesh",
    "LoRA SFT on the box",
    "second box",
    "boxes exchange tensors",
    "destroyed, nothing bills",
]
"""Check.run pairs each with the method that proves it."""
DESTROYED = STEPS[-1]

RENTED_S = 120.0
"""Long, since offers may be taken by others repeatedly and a market may rate-limit us."""
LOGIN_S, SET_UP_S, JOINED_S, TRAINED_S = 180.0, 1200.0, 600.0, 1200.0
"""Long enough for a slow box; MINUTES and the budget limit the whole check."""


class Check:
    """A check of one cluster. agreed(question): whether the user agrees to the price."""

    def __init__(self, cluster: Cluster, agreed: Callable[[str], bool]):
        self.cluster, self.asked, self.agreed = cluster, cluster.asked, agreed
        self.pipeline = Pipeline(STEPS, cluster.usd)
        self.jobs: Jobs | None = None
        self.entry: Entry | None = None
        self.box: Box | None = None

    def run(self) -> bool:
        """Runs the steps up to the first failure. Returns False if the user declines the price."""
        proofs = [
            self.key, self.offer, self.leads, self.rented, self.boot, self.login, self.driver, self.disk, self.link, self.download,
            self.set_up, self.torch, self.store, self.joined, self.train, self.second, self.exchange,
        ]  # fmt: skip
        for step, prove in zip(STEPS[:-1], proofs, strict=True):
            if step == "this machine leads" and not self.agreed(self.price()):
                print("Nothing was rented.")
                return False
            if not self.pipeline.run(step, prove):
                break
        return True

    def end(self) -> None:
        if self.jobs:
            self.jobs.close()
        if self.cluster.config_path.exists():  # from then on, something may have been rented
            self.pipeline.run(DESTROYED, self.cluster.end)

    # ---- the market

    def key(self) -> str:
        for name in self.asked.markets:
            try:
                self.cluster.markets[name] = registry.find(name)
                self.cluster.markets[name].list()
            except (MarketError, ValueError) as e:
                raise Failed(str(e)) from None
        return " and ".join(self.asked.markets)

    def offer(self) -> str:
        try:
            found = self.cluster.candidates()
        except MarketError as e:
            raise Failed(str(e)) from None
        what = " or ".join(self.asked.gpus) or ("a GPU" if self.asked.device == "gpu" else "a box without GPUs")
        if len(found) < self.asked.workers:
            need = self.cluster.needed_cuda()
            driver = f" and a driver for CUDA {need:g}" if need else ""
            raise Failed(
                f"{len(found)} offers of {what} at up to ${self.asked.max_usd_per_hour:g}/h{driver}. Raise --max-price, or name another --gpu"
            )
        self.cluster.narrow(found)
        self.usd_per_hour = usd_per_hour(*found[0])
        total = self.asked.workers * self.usd_per_hour
        if why := self.cluster.budget.refuses(self.cluster.ledger, total, time.time()):
            raise Failed(f"--budget is too small: {why}")
        rung, offer = found[0]
        gpu = f"{offer.count} × {offer.gpu}" if offer.count else "no GPU"
        return f"{rung.market}, {gpu}, {'spot' if rung.spot else 'on demand'}, ${self.usd_per_hour:.3f}/h; {len(found)} fit"

    def price(self) -> str:
        boxes, hourly = self.asked.workers, self.asked.workers * self.usd_per_hour
        return (
            f"Rent {'two such boxes' if boxes > 1 else 'such a box'} at ${hourly:.3f}/h: about ${hourly / 20:.3f} for three minutes, "
            f"${hourly * MINUTES / 60:.2f} for the {MINUTES:.0f} after which it ends on its own, never more than ${self.asked.budget_usd:g}?"
        )

    def leads(self) -> str:
        self.jobs = Jobs(self.cluster.folder, self.asked)
        self.cluster.lead(self.pipeline.progress)
        return "Ray's head is up"

    def rented(self) -> str:
        self.training = self.jobs.train()
        return self._rented()

    def _rented(self) -> str:
        [self.entry] = self._wait(self.cluster.rentals, RENTED_S, self.cluster.refused)[:1]
        e = self.entry
        return f"{e.node}, {f'{e.count} × {e.gpu}' if e.count else 'no GPU'}, {'spot' if e.spot else 'on demand'}"

    def boot(self) -> str:
        return self._boot(self.entry)

    def _boot(self, entry: Entry) -> str:
        def listed() -> str:
            rental = self._now(entry).rental
            return f"{rental.state}: {rental.why}" if rental else "the market doesn't list it yet"

        self._wait(
            lambda: (r := self._now(entry).rental) and r.state == "running" and r.ssh,
            self.asked.boot_minutes * 60,
            listed,
        )
        return "the market reports that it runs"

    def _now(self, entry: Entry) -> Entry:
        return self.cluster.ledger.entry(entry.market, entry.id)

    # ---- the box

    def login(self) -> str:
        self.box = self._login(self.entry)
        return "as root, by the cluster's own key"

    def _login(self, entry: Entry) -> Box:
        box, reason = Box.of(self.cluster.folder, self._now(entry)), ["ssh gets no answer"]

        def works() -> bool:
            try:
                box.run("true", 20)
            except Failed as e:
                reason[0] = str(e)
                return False
            return True

        self._wait(works, LOGIN_S, lambda: reason[0])
        return box

    def driver(self) -> str:
        self._needs_gpu()
        return self.box.driver(self.cluster.needed_cuda())

    def _needs_gpu(self) -> None:
        if self.asked.device != "gpu":
            raise NotAskedFor("--device gpu")

    def disk(self) -> str:
        return self.box.disk()

    def link(self) -> str:
        link = self.box.link()
        return f"{link.round_trip_ms:.0f} ms, {link.up_mb_s:.1f} MB/s there, {link.down_mb_s:.1f} back"

    def download(self) -> str:
        return self.box.download(self.asked.download)

    def set_up(self) -> str:
        self._set_up(self.box)
        return "Python, Ray and packages are installed"

    def _set_up(self, box: Box) -> None:
        box.run(f"mkdir -p {MARKS} && touch {MARKS}/go", 30)

        def ready() -> bool:
            try:
                return box.run(f"[ -e {MARKS}/ready ] && echo yes || true", 30) == "yes\n"
            except Failed:  # the box may be gone; _wait finds the reason in the ledger
                return False

        where = "the output is in /tmp/ray/session_latest/logs/monitor.out"
        self._wait(ready, SET_UP_S, lambda: f"packages are installed; {where}")

    def torch(self) -> str:
        self._needs_gpu()
        return self.box.torch()

    def store(self) -> str:
        if not self.asked.store:
            raise NotAskedFor("--store s3://…")
        return self.box.store(f"{self.jobs.place}/hello", store_environment())

    # ---- Ray

    def joined(self) -> str:
        self._joined(self.entry)
        return "the head reaches it through nothing but its SSH port"

    def _joined(self, entry: Entry) -> None:
        ip = mesh.ip(int(tags.decode(self._now(entry).label)[1][tags.SLOT]))
        self._wait(lambda: joined(ip), JOINED_S, lambda: "its Ray starts")

    def train(self) -> str:
        self._wait(lambda: self.jobs.ended(self.training), TRAINED_S, lambda: "it trains")
        return self.jobs.trained(self.training)

    def second(self) -> str:
        if self.asked.workers < 2:
            raise NotAskedFor("--workers 2")
        self.exchanging = self.jobs.exchange()
        _, other = self._wait(lambda: len(r := self.cluster.rentals()) > 1 and r, RENTED_S, self.cluster.refused)
        self._boot(other)
        self._set_up(self._login(other))
        self._joined(other)
        return f"{other.node} is set up and has joined"

    def exchange(self) -> str:
        if self.asked.workers < 2:
            raise NotAskedFor("--workers 2")
        self._wait(lambda: self.jobs.ended(self.exchanging), TRAINED_S, lambda: "both ranks connect")
        return self.jobs.exchanged(self.exchanging)

    def _wait(self, what, seconds: float, waiting):
        return self.cluster.wait(what, seconds, waiting, self.pipeline.progress)

    # ---- the report

    def report(self) -> dict:
        e = self.entry
        rental = {"market": e.market, "gpu": e.gpu, "count": e.count, "spot": e.spot} if e else None
        asked = {
            "markets": list(self.asked.markets), "gpus": list(self.asked.gpus), "max_usd_per_hour": self.asked.max_usd_per_hour,
            "workers": self.asked.workers, "device": self.asked.device, "store": bool(self.asked.store),
        }  # fmt: skip
        simulated = [name for name in self.asked.markets if os.environ.get(f"{name.upper()}_URL")]
        what = {"rental": rental, "asked": asked, "other_api_than_the_markets": simulated}
        return report.made(self.pipeline, what, self.cluster.usd(), self._secrets())

    def _secrets(self) -> list[str]:
        named = [
            value for key, value in store_environment().items() if re.search("KEY|SECRET|TOKEN|ENDPOINT|PROFILE", key)
        ]
        found = [*named, self.asked.store or "", self.asked.download or ""]
        for name in self.asked.markets:
            found.append(registry.key(name))
        for e in self.cluster.ledger.entries():
            if e.rental and e.rental.ssh:
                found.append(e.rental.ssh[0])
        return found

    def show(self) -> None:
        report.show(self.pipeline, self.cluster.usd())
