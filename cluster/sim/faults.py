"""POST /_sim/CONTROL with a JSON body; replies {"ok": true}, or 400 with the reason. On both markets' ports, without a key.

outbid    {"id"}        someone bids more: Vast stops the rental (and continues to bill its disk)
exit      {"id"}        its container ends: Vast exited, RunPod EXITED
vanish    {"id"}        it disappears from all lists and is no longer billed; its host is not offered again
dark      {"id"}        its host's network is cut; the API still reports it as running and bills it
light     {"id"}        undoes dark
offline   {"id"}        like dark, and Vast's API reports offline (RunPod's reports RUNNING without `runtime`)
freeze    {"id"}        Vast pauses it and bills it in full
restart   {"id"}        its container ends and is restarted, again and again; billed as before
driver    {"machine", "cuda"}     its host has another driver from now on
take      {"machine"}   someone else rents it if it is free          release  {"machine"}   undoes take
price     {"machine" | "gpu", "usd_per_hour"?, "min_bid"?}   per machine; running bids below min_bid are outbid
machines  {"machines": [{"id", "market", "gpu", "count", "gpu_memory_gb", "usd_per_hour", "min_bid", ...}]}
                        adds or replaces machines; {"only": true} also withdraws all others from the market
next      {"market", "fault", "count"?}      fault of the next `count` (1) rentals of the market:
            stuck (its image is pulled forever)  slow (boots five times as long)  noboot (never runs)  nosshd (runs without sshd)
            noip (runs without a public address)  taken (just before the create)
            driver (older than the market claims: CUDA 12.2)  ok (no fault: lets some rentals through first)
api       {"market", "endpoint", "fault", "count"?}   fault of the next `count` calls of e.g. "PUT /api/v0/asks/{id}/":
            429 (the market's own)  429bare (without Retry-After)  429wait (with it)  500  502  503  html (502, a web page)
            timeout (no reply)  json (cut off)  shape (not the documented object)  lost (executed, but answered 502)
            404html  404json  410html  410json (as if it had been retired)
retire    {"market", "endpoint", "as"?}   replies from now on with one of the last four (default 410html); null: works again

GET /_sim/state   {"rentals": the living ones, "calls": {endpoint and status: n}, "faults": those injected at random}
GET /_sim/bill    {"rentals": [{id, market, label, created, started, ended, usd, compute_usd, disk_usd}], "total_usd"}
GET /_sim/machines   [{id, market, gpu, …, taken, free: number of its GPUs that can be rented now}]
GET /_sim/download   32 MB, for measuring the download speed of a box that reaches nothing else
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import time
from collections.abc import Callable
from typing import Literal

from pydantic import Field, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster.sim.api import RETIRED, Api, Refusal, Strict, parse
from cluster.sim.rental import Machine, Rental
from cluster.sim.world import World

log = logging.getLogger("cluster.sim")

BOOT_FAULTS = ("stuck", "slow", "noboot", "nosshd", "noip", "taken", "driver", "ok")
API_FAULTS = ("429", "429bare", "429wait", "500", "502", "503", "html", "timeout", "json", "shape", "lost", *RETIRED)


class OfRental(Strict):
    id: str


class OfMachine(Strict):
    machine: int


class Price(Strict):
    machine: int | None = None
    gpu: str | None = None
    usd_per_hour: float | None = Field(default=None, gt=0)
    min_bid: float | None = Field(default=None, gt=0)


class Machines(Strict):
    machines: list[dict]
    only: bool = False


class Next(Strict):
    market: Literal["vast", "runpod"]
    fault: Literal[BOOT_FAULTS]
    count: int = Field(default=1, ge=1)


class ApiFault(Strict):
    market: Literal["vast", "runpod"]
    endpoint: str
    fault: Literal[API_FAULTS]
    count: int = Field(default=1, ge=1)


class Retire(Strict):
    market: Literal["vast", "runpod"]
    endpoint: str
    how: Literal[(*RETIRED, None)] = Field(default="410html", alias="as")


class Driver(Strict):
    machine: int
    cuda: float = Field(gt=0)


class Controls:
    def __init__(self, world: World, apis: dict[str, Api], rate: float, seed: int):
        """rate: mean number of random faults per minute; 0: none."""
        self.world, self.apis, self.rate, self.chance = world, apis, rate, random.Random(seed + 1)
        self.done: list[dict] = []
        models = {
            name: OfRental for name in ("outbid", "exit", "vanish", "dark", "light", "offline", "freeze", "restart")
        }
        models |= {"take": OfMachine, "release": OfMachine, "price": Price, "machines": Machines}
        models |= {"next": Next, "api": ApiFault, "retire": Retire, "driver": Driver}
        shown = {
            "state": lambda: world.state() | {"faults": self.done},
            "bill": world.bill,
            "machines": lambda: [dataclasses.asdict(m) | {"free": world.free(m)} for m in world.machines.values()],
        }
        self.routes = [Route(f"/_sim/{name}", self._show(data)) for name, data in shown.items()]
        self.routes.append(Route("/_sim/download", lambda request: Response(bytes(32_000_000))))
        for name, model in models.items():
            self.routes.append(Route(f"/_sim/{name}", self._control(name, model), methods=["POST"]))

    def _show(self, data: Callable[[], object]):
        async def serve(request: Request) -> Response:  # async, so that it runs in the world's thread
            return JSONResponse(data())

        return serve

    def _control(self, name: str, model: type[Strict]):
        async def serve(request: Request) -> Response:
            try:
                await getattr(self, name)(parse(model, await request.json()))
            except (Refusal, ValueError) as error:
                return JSONResponse({"ok": False, "error": str(error)}, 400)
            return JSONResponse({"ok": True})

        return serve

    def _rental(self, ident: str) -> Rental:
        rental = self.world.rentals.get(ident)
        if not rental or not rental.alive:
            raise ValueError(f"there is no rental {ident}")
        return rental

    def _machine(self, ident: int) -> Machine:
        if ident not in self.world.machines:
            raise ValueError(f"there is no machine {ident}")
        return self.world.machines[ident]

    # ---- the controls, by name

    async def outbid(self, want: OfRental) -> None:
        rental = self._rental(want.id)
        if not rental.order.spot:
            raise ValueError(f"{want.id} is on demand")
        await self.world.outbid(rental)

    async def exit(self, want: OfRental) -> None:
        await self.world.halt(self._rental(want.id), "exited", "container exited")

    async def vanish(self, want: OfRental) -> None:
        rental = self._rental(want.id)
        rental.machine.taken = True
        await self.world.end(rental, "vanished", "the host is gone")

    async def dark(self, want: OfRental) -> None:
        rental = self._rental(want.id)
        rental.dark = True
        await rental.box.link(False)

    async def light(self, want: OfRental) -> None:
        rental = self._rental(want.id)
        rental.dark = False
        await rental.box.link(True)
        if rental.state == "offline":
            rental.state, rental.why = "running", "success"

    async def offline(self, want: OfRental) -> None:
        await self.dark(want)
        rental = self._rental(want.id)
        if rental.state == "running":
            rental.state, rental.why = "offline", "the host is offline"

    async def freeze(self, want: OfRental) -> None:
        rental = self._rental(want.id)
        if rental.state != "running" or rental.machine.market != "vast":
            raise ValueError(f"{want.id} is no instance of Vast that runs")
        await self.world.pause(rental, "frozen", "paused")

    async def restart(self, want: OfRental) -> None:
        rental = self._rental(want.id)
        if rental.state != "running":
            raise ValueError(f"{want.id} doesn't run")
        await self.world.pause(rental, "restarting", "its container ended")

    async def driver(self, want: Driver) -> None:
        self._machine(want.machine).cuda = want.cuda

    async def take(self, want: OfMachine) -> None:
        self._machine(want.machine).taken = True

    async def release(self, want: OfMachine) -> None:
        self._machine(want.machine).taken = False

    async def price(self, want: Price) -> None:
        if (want.machine is None) == (want.gpu is None):
            raise ValueError("either machine or gpu")
        machines = [self._machine(want.machine)] if want.machine is not None else [
            m for m in self.world.machines.values() if m.gpu == want.gpu
        ]  # fmt: skip
        for m in machines:
            m.usd_per_hour = want.usd_per_hour or m.usd_per_hour
            m.min_bid = want.min_bid or m.min_bid

    async def machines(self, want: Machines) -> None:
        try:
            new = TypeAdapter(list[Machine]).validate_python(want.machines)
        except ValidationError as error:
            raise ValueError(str(error)) from None
        if want.only:
            for m in self.world.machines.values():
                m.taken = True
        self.world.machines |= {m.id: m for m in new}

    async def next(self, want: Next) -> None:
        self.world.next_faults[want.market] += ["" if want.fault == "ok" else want.fault] * want.count

    def _api(self, want: ApiFault | Retire) -> Api:
        api = self.apis[want.market]
        known = {f"{next(iter(r.methods - {'HEAD'}))} {r.path}" for r in api.routes}
        if want.endpoint not in known:
            raise ValueError(f"endpoint: {want.endpoint} is none of {', '.join(sorted(known))}")
        return api

    async def api(self, want: ApiFault) -> None:
        self._api(want).faults[want.endpoint] += [want.fault] * want.count

    async def retire(self, want: Retire) -> None:
        retired = self._api(want).retired
        retired.pop(want.endpoint, None)
        if want.how:
            retired[want.endpoint] = want.how

    # ---- at random

    async def run(self, stop: asyncio.Event) -> None:
        """Runs the world's clock and injects `rate` faults per minute."""
        beat = 0.1
        while not stop.is_set():
            await asyncio.sleep(beat)
            await self.world.tick()
            if self.chance.random() < self.rate / 60 * beat:
                await self._fault()
            if self.rate and self.chance.random() < beat / 20:  # a taken machine is released after 20 s on average
                taken = [m for m in self.world.machines.values() if m.taken]
                if taken:
                    self.chance.choice(taken).taken = False

    async def _fault(self) -> None:
        choice = self.chance.choice
        names = ["outbid", "outbid", "exit", "vanish", "dark", "offline", "freeze", "restart", "price", "driver"]
        name = choice(names + 3 * ["next", "api"])
        market = choice(["vast", "runpod"])
        rentals = [
            r for r in self.world.alive()
            if r.state == "running" and (r.order.spot or name != "outbid") and (r.machine.market == "vast" or name != "freeze")
        ]  # fmt: skip
        if name == "price":
            machine = choice(list(self.world.machines.values()))
            moved = min(machine.min_bid * self.chance.uniform(0.8, 1.4), machine.usd_per_hour * 0.95)
            want: Strict = Price(machine=machine.id, min_bid=moved)
        elif name == "driver":
            gpus = [m for m in self.world.machines.values() if m.cuda]
            want = Driver(machine=choice(gpus).id, cuda=choice([12.2, 12.4, 12.8, 13.0]))
        elif name == "next":
            want = Next(
                market=market,
                fault=choice([f for f in BOOT_FAULTS if f != "ok" and (f != "noip" or market == "runpod")]),
            )
        elif name == "api":
            route = choice(self.apis[market].routes)
            endpoint = f"{next(iter(route.methods - {'HEAD'}))} {route.path}"
            # Endpoints that list or end rentals are never retired at random, since nothing could then be ended.
            some = [f for f in API_FAULTS if f not in RETIRED or endpoint.startswith(("POST", "PUT"))]
            want = ApiFault(market=market, endpoint=endpoint, fault=choice(some), count=self.chance.randint(1, 3))
        elif rentals:
            want = OfRental(id=choice(rentals).id)
        else:
            return
        await getattr(self, name)(want)
        self.done.append({"at": time.time(), "what": name} | want.model_dump(exclude_none=True))
        log.info("fault: %s", self.done[-1])
