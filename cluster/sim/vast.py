"""Vast's REST API, after docs.vast.ai, for the simulated world.

Bill: GPU while the container runs, at the bid or the listed price; disk (`storage_cost` $ per GB and month) from creation to
destruction, also while stopped. An outbid instance is stopped, and restarted when its bid wins again. A frozen one is billed in full.
An unknown key gets 404, the most misleading of the statuses that users report for it.
Sources: docs.vast.ai/api-reference (create-instance, show-instances-v1, search-offers, change-bid, rate-limits-and-errors).
"""

from __future__ import annotations

import base64
import re
import time
from typing import Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from cluster.sim.api import Api, Call, Refusal, Strict, parse
from cluster.sim.rental import HOURS_PER_MONTH, Machine, Order, Rental
from cluster.sim.world import Unavailable, World

OPERATORS = {
    "eq": lambda have, want: have == want,
    "neq": lambda have, want: have != want,
    "gt": lambda have, want: have > want,
    "gte": lambda have, want: have >= want,
    "lt": lambda have, want: have < want,
    "lte": lambda have, want: have <= want,
    "in": lambda have, want: have in want,
    "notin": lambda have, want: have not in want,
}
ODD = 10**7
"""Added to the id of an offer that no client can parse."""
STRANGER = {
    "id": 1, "label": None, "actual_status": "dreaming", "intended_status": None, "num_gpus": None, "gpu_name": None,
    "machine_id": None, "ports": [], "dph_total": None, "start_date": None, "is_bid": None, "a_new_field": [{}],
}  # fmt: skip
"""Another instance of the account, not created by Shoestring."""
PORT = re.compile(r"-p (\d+):(\d+)(/tcp)?")


class Create(Strict):
    """Has only the fields that the simulator implements; a field that it would ignore is rejected, even if Vast accepts it."""

    image: str
    disk: float = Field(default=8.0, gt=0)
    label: str | None = Field(default=None, max_length=127)
    env: dict[str, str] = Field(default_factory=dict)
    onstart: str | None = Field(default=None, max_length=4048)
    runtype: Literal["ssh", "ssh_proxy", "ssh_direct", "jupyter", "jupyter_proxy", "jupyter_direct", "args"] = "ssh"
    price: float | None = Field(default=None, ge=0.001, le=128)
    cancel_unavail: bool | None = None
    image_login: str | None = Field(default=None, pattern=r"^-u \S+ -p \S+ \S+$")
    client_id: Literal["me"] = "me"


class Change(Strict):
    label: str | None = Field(default=None, max_length=127)
    state: Literal["running", "stopped"] | None = None


class Bid(Strict):
    client_id: str
    price: float = Field(ge=0.001, le=32)


class Logs(Strict):
    tail: str | None = None
    filter: str | None = None


class SshKey(Strict):
    ssh_key: str


class Vast(Api):
    market = "vast"
    no_key = 404
    boxes_may = frozenset(f"{method} /api/v0/instances/{{id}}/" for method in ("GET", "PUT", "DELETE"))

    def __init__(self, world: World):
        super().__init__(world)
        self.add("POST", "/api/v0/bundles/", self.search, 10, 60)
        self.add("PUT", "/api/v0/asks/{id}/", self.create, 1, 4.5)
        self.add("GET", "/api/v1/instances/", self.list, 1, 1)
        self.add("GET", "/api/v0/instances/{id}/", self.show, 1, 1)
        self.add("PUT", "/api/v0/instances/{id}/", self.change, 1, 1)
        self.add("DELETE", "/api/v0/instances/{id}/", self.destroy, 1, 3)
        self.add("PUT", "/api/v0/instances/bid_price/{id}/", self.bid, 1, 5.5)
        self.add("PUT", "/api/v0/instances/request_logs/{id}/", self.request_logs, 1, 1)
        self.routes.append(Route("/instance_logs/{id}.log", self.read_logs))
        self.logs: dict[str, str] = {}
        """{id: its log at the time of the request}"""
        self.early: set[str] = set()
        """Ids whose log isn't available yet at the next request."""
        self.add("POST", "/api/v0/ssh/", self.add_key, 1, 1)
        self.add("GET", "/api/v0/ssh/", self.list_keys, 1, 1)

    def refuse(self, refusal: Refusal) -> Response:
        return JSONResponse({"success": False, "error": refusal.kind, "msg": refusal.message}, refusal.status)

    def too_many(self, wait: float) -> Response:
        """Returns plain text without Retry-After, as documented."""
        return PlainTextResponse(f"API requests too frequent: endpoint threshold={wait:.1f}", 429)

    # ---- offers

    def offer(self, m: Machine, bid: bool, storage_gb: float) -> dict:
        base = m.min_bid if bid else m.usd_per_hour
        storage = m.disk_usd_per_gb_month * storage_gb / HOURS_PER_MONTH
        return {
            "id": m.id, "ask_contract_id": m.id, "machine_id": m.id % 100_000 + 20_000, "host_id": m.id % 7 + 1000,
            "gpu_name": m.gpu, "num_gpus": m.count, "gpu_ram": m.gpu_memory_gb * 1024,
            "gpu_total_ram": m.gpu_memory_gb * 1024 * m.count, "cpu_cores": m.cpus, "cpu_cores_effective": float(m.cpus),
            "cpu_ram": int(m.memory_gb * 1024), "disk_space": m.disk_gb, "is_bid": bid, "min_bid": m.min_bid,
            "dph_base": base, "dph_total": base + storage, "storage_cost": m.disk_usd_per_gb_month,
            "storage_total_cost": storage, "inet_up": m.up_mbps, "inet_down": m.down_mbps,
            "inet_up_cost": m.up_usd_per_gb, "inet_down_cost": m.down_usd_per_gb, "reliability": m.reliability,
            "reliability2": m.reliability, "cuda_max_good": m.cuda, "geolocation": m.region, "direct_port_count": 64,
            "static_ip": True, "cluster_id": 1 if self.world.flat else None, "datacenter": m.secure,
            "hosting_type": int(m.secure), "verification": "verified" if m.verified else "unverified",
            "verified": m.verified, "gpu_arch_next": {"from": "a field that is new"}, "external": False, "rentable": True, "rented": False, "duration": 30 * 86400.0,
        }  # fmt: skip

    async def search(self, call: Call) -> Response:
        if not isinstance(call.body, dict):
            raise Refusal(400, "invalid_args", "the query must be an object")
        query = dict(call.body)
        kind, limit = query.pop("type", "on-demand"), query.pop("limit", 64)
        order, storage = query.pop("order", [["score", "desc"]]), query.pop("allocated_storage", 5.0)
        if kind not in ("bid", "interruptible", "on-demand", "ondemand", "reserved"):
            raise Refusal(400, "invalid_args", f"type: {kind}")
        if not isinstance(limit, int) or limit < 1 or not isinstance(storage, int | float):
            raise Refusal(400, "invalid_args", "limit must be a positive integer, allocated_storage a number")
        offers = [
            self.offer(m, kind in ("bid", "interruptible"), storage)
            for m in self.world.of("vast")
            if self.world.free(m) and m.disk_gb >= storage
        ]
        known = self.offer(self.world.of("vast")[0], False, 0.0)
        for name, condition in query.items():
            if name not in known or not isinstance(condition, dict) or not condition.keys() <= OPERATORS.keys():
                raise Refusal(400, "invalid_args", f"{name}: {condition} is no condition on a field of offers")
            have = (lambda o: o["geolocation"][-2:]) if name == "geolocation" else lambda o, name=name: o[name]
            for operator, want in condition.items():
                try:
                    offers = [o for o in offers if have(o) is not None and OPERATORS[operator](have(o), want)]
                except TypeError:
                    raise Refusal(400, "invalid_args", f"{name}: {want!r} cannot be compared") from None
        for pair in reversed(order if isinstance(order, list) else [None]):
            if not isinstance(pair, list) or len(pair) != 2 or pair[1] not in ("asc", "desc"):
                raise Refusal(400, "invalid_args", f'order: {order} is not a list of [field, "asc" or "desc"]')
            if pair[0] == "score":
                offers.sort(key=lambda o: o["reliability"] * max(o["num_gpus"], 0.1) / o["dph_total"])
            elif pair[0] in known:
                offers.sort(key=lambda o, name=pair[0]: (o[name] is None, o[name] or 0))
            else:
                raise Refusal(400, "invalid_args", f"order: offers have no {pair[0]}")
            if pair[1] == "desc":
                offers.reverse()
        offers = offers[:limit]
        if offers:  # an odd offer, since hosts enter arbitrary values, and fields change
            odd = dict.fromkeys(("reliability", "reliability2", "min_bid", "gpu_ram", "inet_down_cost", "geolocation"))
            offers.append(offers[-1] | {"id": offers[-1]["id"] + ODD, "ask_contract_id": None, "host_id": "?"} | odd)
        return JSONResponse({"success": True, "offers": offers})

    # ---- instances

    async def create(self, call: Call) -> Response:
        ask = call.request.path_params["id"]
        want = parse(Create, call.body)
        assert isinstance(want, Create)
        machine = self.world.machines.get(int(ask)) if ask.isdigit() else None
        gone = Refusal(404, "invalid_args", f"error 404/3603: no_such_ask Instance type by id {ask} is not available.")
        if not machine or machine.market != "vast":
            raise gone
        if want.disk > machine.disk_gb:
            raise Refusal(400, "invalid_args", f"disk: the machine has {machine.disk_gb:g} GB")
        ports = [22] if want.runtype != "args" else []
        for name in want.env:
            if name.startswith("-p"):
                match = PORT.fullmatch(name)
                if not match:
                    raise Refusal(400, "invalid_args", f"env: {name} is not -p OUTSIDE:INSIDE (TCP only here)")
                if int(match[2]) not in ports:
                    ports.append(int(match[2]))
        if len(ports) > 64:
            raise Refusal(400, "invalid_args", "env: at most 64 ports")
        disk = machine.disk_usd_per_gb_month * want.disk / HOURS_PER_MONTH
        order = Order(
            label=want.label or "",
            image=want.image,
            disk_gb=want.disk,
            count=machine.count,
            usd_per_hour=machine.usd_per_hour if want.price is None else want.price,
            spot=want.price is not None,
            disk_usd_per_hour=disk,
            stopped_disk_usd_per_hour=disk,
            env={k: v for k, v in want.env.items() if not k.startswith("-p")},
            ports=ports,
            start=want.onstart or "",
            keys=list(self.world.ssh_keys["vast"]),
            sshd=want.runtype != "args",
            flat=True,
            extra={"runtype": want.runtype, "login": want.image_login},
        )
        # If the bid loses or the machine was just taken, a stopped, billed instance remains unless cancel_unavail is set.
        cancel = want.cancel_unavail if want.cancel_unavail is not None else not order.spot
        try:
            rental = self.world.rent(machine, order)
        except Unavailable:
            if cancel:
                raise gone from None
            rental = self.world.rent(machine, order, stopped=True)
        return JSONResponse({"success": True, "new_contract": int(rental.id)})

    def instance(self, r: Rental) -> dict:
        m, now = r.machine, time.time()
        status = {"provisioning": None, "error": "exited"}.get(r.state, r.state)
        on = r.state in ("provisioning", "loading", "running", "frozen", "restarting", "offline")
        mapped = r.box.mapped if r.public_ip else {}
        return self.offer(m, r.order.spot, r.order.disk_gb) | {
            "id": int(r.id), "label": r.order.label or None, "actual_status": status, "intended_status": r.intended,
            "cur_state": "running" if on else "stopped", "next_state": "running" if on else "stopped",
            "status_msg": r.why or None, "image_uuid": r.order.image, "image_runtype": r.order.extra["runtype"],
            "extra_env": [[k, v] for k, v in r.order.env.items()], "onstart": r.order.start or None,
            "dph_base": r.order.usd_per_hour, "dph_total": r.order.usd_per_hour + r.order.disk_usd_per_hour,
            "storage_total_cost": r.order.disk_usd_per_hour, "disk_space": r.order.disk_gb, "is_bid": r.order.spot,
            "start_date": r.created, "duration": now - r.created,
            "uptime_mins": (now - r.started) / 60 if r.started else None,
            "public_ipaddr": r.box.public if r.public_ip else None, "local_ipaddrs": r.box.address, "ssh_host": "ssh1.sim.invalid",
            "ssh_port": 10000 + int(r.id) % 10000, "direct_port_start": -1, "direct_port_end": -1,
            "ports": {f"{p}/tcp": [{"HostIp": "0.0.0.0", "HostPort": str(port.public)}]
                      for p, port in mapped.items()} if mapped else None,
        }  # fmt: skip

    async def list(self, call: Call) -> Response:
        query = call.request.query_params
        if unknown := query.keys() - {"limit", "after_token"}:
            raise Refusal(400, "invalid_args", f"unknown: {', '.join(sorted(unknown))}")
        limit = query.get("limit", "25")
        if not limit.isdigit() or not 1 <= int(limit) <= 25:
            raise Refusal(400, "invalid_args", "limit must be 1 to 25")
        try:
            after = int(base64.b64decode(query["after_token"])) if query.get("after_token") else 0
        except ValueError:
            raise Refusal(400, "invalid_args", "after_token") from None
        mine = sorted(self.world.alive("vast"), key=lambda r: int(r.id))
        rest = [r for r in mine if int(r.id) > after]
        page, more = rest[: int(limit)], rest[int(limit) :]
        shown = [self.instance(r) for r in page]
        shown = shown if more else [*shown, STRANGER][: int(limit)]  # may be cut off at the end of a page
        return JSONResponse(
            {
                "success": True,
                "instances": shown,
                "instances_found": len(shown),
                "total_instances": len(mine) + 1,
                "next_token": base64.b64encode(page[-1].id.encode()).decode() if more else None,
            }
        )

    async def show(self, call: Call) -> Response:
        return JSONResponse({"instances": self.instance(call.rental(self.world, "vast"))})

    async def change(self, call: Call) -> Response:
        rental, want = call.rental(self.world, "vast"), parse(Change, call.body)
        assert isinstance(want, Change)
        if want.label is None and want.state is None:
            raise Refusal(400, "invalid_args", "label or state is missing")
        if call.only and (want.label is not None or want.state == "running"):
            raise Refusal(403, "forbidden", "an instance's key may only look at, stop and destroy that instance")
        if want.label is not None:
            rental.order.label = want.label
        if want.state:
            rental.intended = want.state
            if want.state == "stopped" and rental.state != "stopped":
                await self.world.halt(rental, "stopped", "stopped by its user")
            # The next tick starts it if the machine is free and the bid wins.
        return JSONResponse({"success": True})

    async def destroy(self, call: Call) -> Response:
        await self.world.end(call.rental(self.world, "vast"), "destroyed", "destroyed by its user")
        return JSONResponse({"success": True, "msg": "Instance destroyed successfully"})

    async def bid(self, call: Call) -> Response:
        rental, want = call.rental(self.world, "vast"), parse(Bid, call.body)
        assert isinstance(want, Bid)
        if not rental.order.spot:
            raise Refusal(400, "invalid_args", "the instance is on demand")
        self.world.bid(rental, want.price)
        return JSONResponse({"success": True})

    async def request_logs(self, call: Call) -> Response:
        rental, want = call.rental(self.world, "vast"), parse(Logs, call.body)
        assert isinstance(want, Logs)
        self.logs[rental.id] = f"{rental.state}: {rental.why}\nwhat the container printed\n"
        self.early.add(rental.id)
        url = f"{call.request.base_url}instance_logs/{rental.id}.log"
        return JSONResponse({"success": True, "result_url": url, "msg": ""})

    async def read_logs(self, request: Request) -> Response:
        """Serves a log as S3 does: without a key, and not at once."""
        id = request.path_params["id"]
        if "Authorization" in request.headers:
            return PlainTextResponse("Only one auth mechanism allowed", 400)
        if id not in self.logs or id in self.early:
            self.early.discard(id)
            return PlainTextResponse("NoSuchKey", 404)
        return PlainTextResponse(self.logs[id])

    # ---- the account

    async def add_key(self, call: Call) -> Response:
        want = parse(SshKey, call.body)
        assert isinstance(want, SshKey)
        self.world.ssh_keys["vast"].append(want.ssh_key.strip())
        return JSONResponse({"success": True})

    async def list_keys(self, call: Call) -> Response:
        return JSONResponse([{"id": i, "public_key": k} for i, k in enumerate(self.world.ssh_keys["vast"])])
