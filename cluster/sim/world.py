"""The state behind both APIs: machines, their rentals, and the rentals' life cycle and bill.

A rental is billed by the second: its compute while its container runs, its disk while it exists (each market's rules are in the module
docstrings of vast.py and runpod.py). Everything here runs in one event loop, so nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from cluster.sim.rental import Boot, Box, Machine, Order, Rental, State

log = logging.getLogger("cluster.sim")

PRIVATE = "private.example/"
"""Prefix of images that only LOGINS may pull: arguments of docker login (Vast) and a registry id (RunPod)."""
LOGINS = ("-u me -p secret private.example", "reg_private")
SLOW = 5.0
"""Factor by which a slow host's boot takes longer."""


class Unavailable(Exception):
    """The machine is rented by someone else, or the bid is too low."""


class World:
    def __init__(
        self,
        machines: list[Machine],
        make_box: Callable[[], Box],
        boot_s: float,
        seed: int,
        pace: float,
        flat: bool,
        realistic: bool = False,
    ):
        """realistic: boots take between 0.5 and 3 times boot_s."""
        self.machines = {m.id: m for m in machines}
        self.rentals: dict[str, Rental] = {}
        """All rentals, including ended ones."""
        self.make_box, self.boot_s, self.pace, self.flat = make_box, boot_s, pace, flat
        self.realistic, self.chance = realistic, random.Random(seed)
        self.keys = {market: f"{market}-sim-{secrets.token_hex(12)}" for market in ("vast", "runpod")}
        self.urls: dict[str, str] = {}
        """URLs of the APIs for the boxes."""
        self.ssh_keys: dict[str, list[str]] = {"vast": [], "runpod": []}
        """SSH keys of the account."""
        self.calls: Counter[str] = Counter()
        """{endpoint and status, such as "PUT /api/v0/asks/{id}/ 200": number of calls}"""
        self.next_faults: dict[str, list[str]] = {"vast": [], "runpod": []}
        """Faults of the next rentals, in order; "" is no fault."""

    # ---- machines

    def of(self, market: str) -> list[Machine]:
        return [m for m in self.machines.values() if m.market == market]

    def alive(self, market: str | None = None) -> list[Rental]:
        return [r for r in self.rentals.values() if r.alive and market in (None, r.machine.market)]

    def free(self, machine: Machine) -> int:
        """Returns the number of GPUs that can be rented now; for a CPU machine, 1 or 0."""
        if machine.taken:
            return 0
        held = [r for r in self.alive() if r.machine is machine and r.state not in ("stopped", "exited", "error")]
        if machine.market == "vast" or not machine.count:
            return 0 if held and machine.market == "vast" else max(machine.count, 1)
        return machine.count - sum(r.order.count for r in held)

    # ---- life cycle

    def rent(self, machine: Machine, order: Order, stopped: bool = False) -> Rental:
        """Rents the machine. stopped: the rental only waits for the machine to become available, with its disk billed.

        Raises Unavailable.
        """
        fault = self.next_faults[machine.market].pop(0) if self.next_faults[machine.market] else ""
        if fault == "taken":
            machine.taken = True
        if not stopped:
            if self.free(machine) < max(order.count, 1):
                raise Unavailable("somebody else has it")
            if order.spot and order.usd_per_hour < machine.min_bid:
                raise Unavailable("the bid is too low")
        ident = (
            str(self.chance.randrange(10**7, 10**8))
            if machine.market == "vast"
            else "".join(self.chance.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=14))
        )
        now = time.time()
        rental = Rental(ident, machine, order, f"{machine.market}-box-{secrets.token_hex(12)}", self.make_box(), now)
        rental.public_ip = machine.public_ip and fault != "noip"
        self.rentals[ident] = rental
        rental.charge("disk", order.stopped_disk_usd_per_hour, now)
        price = order.usd_per_hour
        log.info("%s created: %s on machine %s, $%.4f/h", rental.name, order.label, machine.id, price)
        if stopped:
            rental.state, rental.why = "stopped", "waiting for the machine"
        else:
            self.start(rental, fault)
        return rental

    def start(self, rental: Rental, fault: str = "") -> None:
        assert rental.alive and rental.booting is None
        rental.state, rental.why, rental.intended, rental.dark = "provisioning", "", "running", False
        rental.booting = asyncio.create_task(self._boot(rental, fault))

    async def _boot(self, rental: Rental, fault: str) -> None:
        boot_s = self.boot_s * (SLOW if fault == "slow" else self.chance.uniform(0.5, 3.0) if self.realistic else 1.0)
        try:
            await asyncio.sleep(boot_s * 0.3)
            rental.state, rental.why = "loading", "pulling image" if self.realistic or fault == "slow" else ""
            await asyncio.sleep(boot_s * 0.7)
            if fault == "stuck":
                rental.why = "pulling image"
                await asyncio.Event().wait()
            if rental.order.image.startswith(PRIVATE) and rental.order.extra["login"] not in LOGINS:
                rental.why = f"Error response from daemon: pull access denied for {rental.order.image}"
                await asyncio.Event().wait()
            if fault == "noboot":
                rental.state, rental.why = "error", "container failed to start"
                return
            if fault == "driver":
                rental.order.extra["driver_cuda"] = 12.2
            sshd = rental.order.sshd and fault != "nosshd"
            ended = partial(self.halt, rental, "exited", "its command ended")
            boot = asyncio.create_task(rental.box.boot(Boot(rental, self.urls, self.flat, sshd, ended)))
            try:
                await asyncio.shield(boot)
            except asyncio.CancelledError:
                await boot  # a half-booted box can't be taken down
                raise
            now = time.time()
            rental.state, rental.why, rental.started = "running", "success", now
            rental.first_started = rental.first_started or now
            rental.charge("compute", rental.order.usd_per_hour, now)
            rental.charge("disk", rental.order.disk_usd_per_hour, now)
            log.info("%s runs: %s", rental.name, {p: port.public for p, port in rental.box.mapped.items()})
        except OSError as error:  # such as no namespaces or no memory on this machine
            rental.state, rental.why = "error", str(error)
            await rental.box.kill()
            log.error("%s did not boot: %s", rental.name, error)
        finally:
            rental.booting = None

    async def halt(self, rental: Rental, state: State, why: str) -> None:
        """Ends the container and the billing of compute; the disk stays."""
        now = time.time()
        rental.state, rental.why, rental.started = state, why, None
        rental.charge("compute", 0, now)
        rental.charge("disk", rental.order.stopped_disk_usd_per_hour, now)
        log.info("%s %s: %s", rental.name, state, why)
        await self._kill(rental)

    async def end(self, rental: Rental, state: State, why: str) -> None:
        """Ends all billing and removes the rental from the lists."""
        now = time.time()
        rental.state, rental.why, rental.started, rental.ended = state, why, None, now
        rental.charge("compute", 0, now)
        rental.charge("disk", 0, now)
        log.info("%s %s: %s, $%.6f", rental.name, state, why, rental.usd(now))
        await self._kill(rental)
        await rental.box.remove()

    async def _kill(self, rental: Rental) -> None:
        if rental.booting:
            rental.booting.cancel()
            await asyncio.wait([rental.booting])
            rental.booting = None
        await rental.box.kill()

    async def pause(self, rental: Rental, state: State, why: str) -> None:
        """Makes the rental unreachable; billing continues as before."""
        rental.state, rental.why = state, why
        await rental.box.link(False)

    async def outbid(self, rental: Rental) -> None:
        """Someone else gets the machine; the rental is stopped until its bid wins again."""
        rental.machine.taken = True
        await self.halt(rental, "stopped", "outbid")

    def bid(self, rental: Rental, usd_per_hour: float) -> None:
        rental.order.usd_per_hour = usd_per_hour
        if rental.state == "running":
            rental.charge("compute", usd_per_hour, time.time())

    async def tick(self) -> None:
        """Outbids rentals whose bid is below the price, and restarts stopped ones whose bid wins now."""
        for rental in self.alive():
            if not rental.alive:  # ended while another was being started or stopped
                continue
            machine = rental.machine
            low = rental.order.spot and rental.order.usd_per_hour < machine.min_bid
            if low and rental.state in ("provisioning", "loading", "running"):
                await self.outbid(rental)
            elif (
                machine.market == "vast" and rental.state == "stopped" and rental.intended == "running"
                and not low and self.free(machine)
            ):  # fmt: skip
                self.start(rental)

    # ---- the bill

    def bill(self) -> dict:
        """Returns {"rentals": [{id, market, label, created, started, ended, usd, compute_usd, disk_usd}], "total_usd"}."""
        now = time.time()
        rows = []
        for r in self.rentals.values():
            rows.append(
                {
                    "id": r.id, "market": r.machine.market, "label": r.order.label, "created": r.created,
                    "started": r.first_started, "ended": r.ended, "usd": r.usd(now),
                    "compute_usd": r.usd(now, "compute"), "disk_usd": r.usd(now, "disk"),
                }
            )  # fmt: skip
        return {"rentals": rows, "total_usd": sum(row["usd"] for row in rows), "now": now}

    def state(self) -> dict:
        """Returns {"rentals": the living ones, "calls": {endpoint and status: n}}."""
        return {
            "rentals": [
                {
                    "id": r.id, "market": r.machine.market, "label": r.order.label, "state": r.state, "why": r.why,
                    "dark": r.dark, "machine": r.machine.id, "gpu": r.machine.gpu, "count": r.order.count,
                    "spot": r.order.spot, "usd_per_hour": r.order.usd_per_hour, "created": r.created,
                    "started": r.started, "address": r.box.address,
                    "ports": {str(p): {"public": m.public, "bytes_in": m.bytes_in, "bytes_out": m.bytes_out}
                              for p, m in r.box.mapped.items()},
                }
                for r in self.alive()
            ],
            "calls": dict(self.calls),
        }  # fmt: skip
