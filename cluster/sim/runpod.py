"""RunPod's REST v2, after its OpenAPI description, for the simulated world. It has no spot pods.

Bill: compute at `cost` while RUNNING; container disk $0.10 per GB and month while RUNNING; persistent volume $0.10 per GB and month
while RUNNING and $0.20 otherwise, until the pod is deleted (docs.runpod.io/pods/pricing). An EXITED pod isn't restarted.
With `--runpod-spec FILE`, every body that pods.py accepts and every reply is also checked against the complete description.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from pathlib import Path

from jsonschema import Draft202012Validator
from starlette.responses import JSONResponse, Response, StreamingResponse

from cluster.sim import stock
from cluster.sim.api import Api, Call, Refusal, Strict, parse
from cluster.sim.pods import Action, Create, SshKeys, Update, stamp, tcp_ports
from cluster.sim.rental import HOURS_PER_MONTH, Order, Rental
from cluster.sim.world import Unavailable, World

NO_CAPACITY = (
    "There are no longer any instances available with the requested specifications. Please refresh and try again."
)
STATUS = {
    "provisioning": "PROVISIONING",
    "loading": "STARTING",
    "running": "RUNNING",
    "frozen": "RUNNING",
    "restarting": "STARTING",
    "offline": "RUNNING",
    "stopped": "EXITED",
    "exited": "EXITED",
    "error": "ERROR",
}
ACTIONS = {
    "PROVISIONING": ["stop", "terminate"],
    "STARTING": ["stop", "terminate"],
    "RUNNING": ["stop", "restart", "terminate"],
    "EXITED": ["start", "terminate"],
    "ERROR": ["start", "terminate"],
}


STRANGERS_POD = {
    "id": "zz",
    "name": None,
    "status": "HIBERNATED",
    "gpu": {"id": None},
    "env": None,
    "a_new_field": [{}],
}
"""Another pod of the account, not created by Shoestring, with values that clients don't know."""
NEW_GPU = {
    "id": "NVIDIA Mystery", "name": None, "memory": None, "secure": True, "community": True, "price": None, "maxCount": {},
    "availability": "SOON", "a_new_field": 1,
}  # fmt: skip
"""A catalog row that no client can parse."""


class RunPod(Api):
    market = "runpod"
    boxes_may = frozenset({"GET /v2/pods/{id}", "DELETE /v2/pods/{id}", "POST /v2/pods/{id}/action"})

    def __init__(self, world: World, spec: Path | None):
        super().__init__(world)
        self.components = json.loads(spec.read_text())["components"] if spec else None
        for method, path, handler in (
            ("GET", "/v2/account/ssh-keys", self.get_keys),
            ("PUT", "/v2/account/ssh-keys", self.put_keys),
            ("GET", "/v2/pods", self.list),
            ("POST", "/v2/pods", self.create),
            ("GET", "/v2/pods/{id}", self.get),
            ("PATCH", "/v2/pods/{id}", self.update),
            ("DELETE", "/v2/pods/{id}", self.delete),
            ("POST", "/v2/pods/{id}/action", self.action),
            ("GET", "/v2/pods/{id}/logs", self.logs),
            ("GET", "/v2/catalog/gpus", self.gpus),
            ("GET", "/v2/catalog/cpus", self.cpus),
        ):
            self.add(method, path, handler, 100, 60)

    def refuse(self, refusal: Refusal) -> Response:
        title = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 409: "Conflict"}
        problem = {
            "title": title.get(refusal.status, "Unprocessable Entity"),
            "status": refusal.status,
            "detail": refusal.message,
        }
        if refusal.errors:
            problem["errors"] = refusal.errors
        return JSONResponse(problem, refusal.status, media_type="application/problem+json")

    def too_many(self, wait: float) -> Response:
        response = self.refuse(Refusal(429, "rate", f"rate limit exceeded; retry in {math.ceil(wait)} s"))
        response.headers["Retry-After"] = str(math.ceil(wait))
        return response

    def body(self, model: type[Strict], schema: str, call: Call) -> Strict:
        """Returns the call's body as a `model`. Raises Refusal 422."""
        try:
            want = parse(model, call.body)
        except Refusal as refusal:
            raise Refusal(422, refusal.kind, refusal.message, refusal.errors) from None
        self.hold(schema, call.body)
        return want

    def reply(self, schema: str, data: dict, status: int = 200, odd: dict | None = None) -> Response:
        """Returns a reply. odd: {list in data: an additional row that the description doesn't allow}"""
        self.hold(schema, data)
        return JSONResponse(data | {name: [*data[name], row] for name, row in (odd or {}).items()}, status)

    def hold(self, schema: str, data: object) -> None:
        """Checks that `data`, which our models accept or return, is valid by the description, if one is loaded."""
        if self.components:
            whole = {"$ref": f"#/components/schemas/{schema}", "components": self.components}
            errors = [e.message for e in Draft202012Validator(whole).iter_errors(data)]
            assert not errors, f"not a {schema} by the OpenAPI description: {errors}"

    # ---- pods

    def order(self, name: str, image: str, disk: int, mounts: dict, env: dict[str, str], ports: list[str], args: str,
              ssh: bool, extra: dict, **more) -> Order:  # fmt: skip
        """mounts: as in REST. With startSsh, the keys in env.PUBLIC_KEY, or else the account's, may log in."""
        own = env.get("PUBLIC_KEY", "")
        keys = (own.splitlines() if own else self.world.ssh_keys["runpod"]) if ssh else []
        volume = mounts["persistent"]["size"] if mounts else 0
        return Order(
            label=name,
            image=image,
            disk_gb=disk,
            disk_usd_per_hour=(disk + volume) * 0.1 / HOURS_PER_MONTH,
            stopped_disk_usd_per_hour=volume * 0.2 / HOURS_PER_MONTH,
            env=env | ({"PUBLIC_KEY": "\n".join(keys)} if keys else {}),
            ports=tcp_ports(ports),
            start=args,
            volume=mounts["persistent"]["path"] if mounts else "",
            keys=keys,
            sshd=bool(keys),
            extra=extra | {"ports": ports, "mounts": mounts},
            **more,
        )

    async def create(self, call: Call) -> Response:
        want = self.body(Create, "CreatePodRequest", call)
        assert isinstance(want, Create)
        if (want.gpu is None) == (want.cpu is None):
            raise Refusal(400, "compute", "exactly one of gpu or cpu must be set")
        if want.globalNetworking and (not self.world.flat or want.cpu):
            raise Refusal(400, "network", "globalNetworking needs a GPU and a data center that supports it")
        if want.gpu:
            gpu, count = want.gpu.id, want.gpu.count
            if gpu not in stock.gpu_names(self.world):
                raise Refusal(400, "gpu", f"gpu.id: {gpu} is not in GET /v2/catalog/gpus")
            able = stock.choose(
                self.world, gpu, count, [want.cloud == "SECURE"], want.dataCenterIds,
                want.gpu.minCudaVersion or "0", want.gpu.allowedCudaVersions,
            )  # fmt: skip
        else:
            assert want.cpu
            count, able = 0, stock.choose(self.world, want.cpu.id)
        if not able:
            raise Refusal(400, "capacity", NO_CAPACITY)
        machine, mounts = able[0], want.mounts.model_dump(exclude_none=True)
        price = machine.usd_per_hour * (count / machine.count if want.gpu else want.cpu.vcpuCount)
        order = self.order(
            want.name, want.image, want.disk, mounts, want.env, want.ports, want.args, want.startSsh,
            count=count, usd_per_hour=price, spot=False, flat=want.globalNetworking,
            extra={"cloud": want.cloud, "vcpus": want.cpu.vcpuCount if want.cpu else 0, "login": want.registry},
        )  # fmt: skip
        try:
            rental = self.world.rent(machine, order)
        except Unavailable:
            raise Refusal(400, "capacity", NO_CAPACITY) from None
        return self.reply("Pod", self.pod(rental), 201)

    def pod(self, r: Rental) -> dict:
        m, o, extra, status = r.machine, r.order, r.order.extra, STATUS[r.state]
        mapped = r.box.mapped if r.public_ip else {}
        ssh = mapped.get(22)
        direct = ssh and {
            "host": r.box.public,
            "port": ssh.public,
            "username": "root",
            "command": f"ssh root@{r.box.public} -p {ssh.public}",
        }
        runtime = r.state == "running" and {
            "uptime": int(time.time() - (r.started or 0)),
            "ports": [
                {"private": p, "public": port.public, "type": "tcp", "ip": r.box.public} for p, port in mapped.items()
            ],
        }
        network = {"enabled": o.flat}
        if o.flat and r.box.address:
            network |= {"ip": r.box.address, "internalDns": f"{r.id}.runpod.internal"}
        pod = {
            "id": r.id, "name": o.label, "status": status, "actions": ACTIONS[status], "image": o.image,
            "args": o.start, "disk": int(o.disk_gb), "mounts": extra["mounts"], "ports": extra["ports"], "env": o.env,
            "registry": None, "cloud": extra["cloud"], "dataCenterId": m.region,
            "cudaVersion": m.cuda and str(m.cuda), "ssh": {"proxy": None, "direct": direct or None}, "template": None,
            "cost": o.usd_per_hour if r.started else 0.0, "locked": False,
            "runtime": runtime or None, "createdAt": stamp(r.created), "startedAt": stamp(r.started),
            "globalNetworking": network,
        }  # fmt: skip
        if m.count:
            pod["gpu"] = {"id": m.gpu, "count": o.count}
        else:
            memory = int(m.memory_gb / m.cpus * extra["vcpus"])
            pod["cpu"] = {"id": m.gpu, "vcpuCount": extra["vcpus"], "memory": memory}
        return pod

    async def list(self, call: Call) -> Response:
        if unknown := call.request.query_params.keys() - {"includeClusterPods"}:
            raise Refusal(400, "query", f"unknown: {', '.join(sorted(unknown))}")
        pods = [self.pod(r) for r in self.world.alive("runpod")]
        return self.reply("ListPodsResponse", {"pods": pods}, odd={"pods": STRANGERS_POD})

    async def get(self, call: Call) -> Response:
        return self.reply("Pod", self.pod(call.rental(self.world, "runpod")))

    async def logs(self, call: Call) -> Response:
        """Sends the output so far as server-sent events, then keeps the stream open without sending anything."""
        rental = call.rental(self.world, "runpod")

        async def events():
            for source, line in (
                ("system", f"{rental.state}: {rental.why}"),
                ("container", "what the container printed"),
            ):
                yield f"id: {rental.created}\ndata: {json.dumps({'ts': str(rental.created), 'source': source, 'line': line})}\n\n"
            await asyncio.sleep(3600)

        return StreamingResponse(events(), media_type="text/event-stream")

    async def update(self, call: Call) -> Response:
        rental, want = call.rental(self.world, "runpod"), self.body(Update, "UpdatePodRequest", call)
        assert isinstance(want, Update)
        order = rental.order
        order.label, order.image = want.name or order.label, want.image or order.image
        order.start = order.start if want.args is None else want.args
        order.env = order.env if want.env is None else want.env
        if want.ports is not None:
            order.ports, order.extra["ports"] = tcp_ports(want.ports), want.ports
        return self.reply("Pod", self.pod(rental))

    async def delete(self, call: Call) -> Response:
        await self.world.end(call.rental(self.world, "runpod"), "destroyed", "deleted by its user")
        return Response(status_code=204)

    async def action(self, call: Call) -> Response:
        rental, want = call.rental(self.world, "runpod"), self.body(Action, "PodActionRequest", call)
        assert isinstance(want, Action)
        if call.only and want.action in ("start", "restart"):
            raise Refusal(403, "forbidden", "a pod's key may only look at, stop and terminate that pod")
        if want.action not in ACTIONS[STATUS[rental.state]]:
            raise Refusal(409, "status", f"{want.action} is not valid for a pod that is {STATUS[rental.state]}")
        if want.action == "terminate":
            return await self.delete(call)
        if want.action != "start":
            await self.world.halt(rental, "exited", f"{want.action} by its user")
        if want.action != "stop":
            if self.world.free(rental.machine) < max(rental.order.count, 1):
                raise Refusal(400, "capacity", "There are not enough free GPUs on the host machine to start this pod.")
            self.world.start(rental)
        return self.reply("Pod", self.pod(rental))

    # ---- account and catalog

    async def get_keys(self, call: Call) -> Response:
        return self.reply("SshKeys", {"keys": self.world.ssh_keys["runpod"]})

    async def put_keys(self, call: Call) -> Response:
        want = self.body(SshKeys, "UpdateSshKeysRequest", call)
        assert isinstance(want, SshKeys)
        self.world.ssh_keys["runpod"] = want.keys
        return await self.get_keys(call)

    async def gpus(self, call: Call) -> Response:
        types = stock.gpu_types(self.world, self.catalog_query(call))
        return self.reply("ListGpuTypesResponse", {"gpus": types}, odd={"gpus": NEW_GPU})

    async def cpus(self, call: Call) -> Response:
        return self.reply("ListCpuTypesResponse", {"cpus": stock.cpu_types(self.world, self.catalog_query(call))})

    def catalog_query(self, call: Call) -> stock.Query:
        """Returns the query of a catalog call. Raises Refusal."""
        query = parse(stock.Query, dict(call.request.query_params))
        assert isinstance(query, stock.Query)
        return query
