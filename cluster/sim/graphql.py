"""RunPod's GraphQL, as much of it as spot needs: REST v2 has no interruptible pods.

The types are those of graphql-spec.runpod.io, cut to what is implemented; whatever else is asked for is refused by name.
"""

from __future__ import annotations

from datetime import datetime

from graphql import GraphQLError, build_schema, graphql
from starlette.responses import JSONResponse, Response

from cluster.sim import stock
from cluster.sim.api import Call, Refusal
from cluster.sim.rental import Rental
from cluster.sim.runpod import NO_CAPACITY, STATUS, RunPod
from cluster.sim.world import Unavailable

SCHEMA = build_schema("""
scalar DateTime
enum CloudTypeEnum { ALL SECURE COMMUNITY }
input EnvironmentVariableInput { key: String! value: String! }
input GpuTypeFilter { id: String }
input GpuLowestPriceInput {
  gpuCount: Int, secureCloud: Boolean, dataCenterId: String, supportPublicIp: Boolean
}
input PodFilter { podId: String! }
input PodStopInput { podId: String! }
input PodTerminateInput { podId: String! }
input PodRentInterruptableInput {
  bidPerGpu: Float!, cloudType: CloudTypeEnum, containerDiskInGb: Int, dockerArgs: String,
  env: [EnvironmentVariableInput], gpuCount: Int, gpuTypeId: String, imageName: String, name: String,
  ports: String, startSsh: Boolean, stopAfter: DateTime, terminateAfter: DateTime, supportPublicIp: Boolean,
  volumeInGb: Int, volumeMountPath: String, dataCenterId: String, allowedCudaVersions: [String]
}
type LowestPrice {
  minimumBidPrice: Float, uninterruptablePrice: Float, minVcpu: Int, minMemory: Int, stockStatus: String,
  maxUnreservedGpuCount: Int
}
type GpuType {
  id: String, displayName: String, memoryInGb: Int, secureCloud: Boolean, communityCloud: Boolean, securePrice: Float,
  communityPrice: Float, secureSpotPrice: Float, communitySpotPrice: Float, maxGpuCount: Int,
  lowestPrice(input: GpuLowestPriceInput): LowestPrice
}
type PodMachineInfo { gpuDisplayName: String, location: String, secureCloud: Boolean, dataCenterId: String }
type PodRuntimePorts { ip: String, isIpPublic: Boolean, privatePort: Int, publicPort: Int, type: String }
type PodRuntime { uptimeInSeconds: Int, ports: [PodRuntimePorts] }
type Pod {
  id: String!, name: String, imageName: String, desiredStatus: String!, podType: String, costPerHr: Float!,
  adjustedCostPerHr: Float, gpuCount: Int, containerDiskInGb: Int, machineId: String, env: [String], ports: String,
  machine: PodMachineInfo, runtime: PodRuntime
}
type User { id: ID, pods: [Pod] }
type Query { gpuTypes(input: GpuTypeFilter): [GpuType], pod(input: PodFilter): Pod, myself: User }
type Mutation {
  podRentInterruptable(input: PodRentInterruptableInput!): Pod
  podStop(input: PodStopInput!): Pod
  podTerminate(input: PodTerminateInput!): String
}
""")


def unix(moment: str | None) -> float | None:
    try:
        return datetime.fromisoformat(moment).timestamp() if moment else None
    except ValueError:
        raise GraphQLError(f"{moment} is not an ISO 8601 moment") from None


class GraphQL(RunPod):
    """Both APIs of RunPod, on one port."""

    def __init__(self, world, spec):
        super().__init__(world, spec)
        self.add("POST", "/graphql", self.query, 100, 60)

    def key(self, request) -> str:
        return super().key(request) or (
            request.query_params.get("api_key", "") if request.url.path == "/graphql" else ""
        )

    async def query(self, call: Call) -> Response:
        body = call.body
        if not isinstance(body, dict) or not isinstance(body.get("query"), str):
            raise Refusal(400, "graphql", "POST body missing: {query, variables}")
        root = Root(self, call)
        result = await graphql(SCHEMA, body["query"], root, variable_values=body.get("variables"))
        return JSONResponse(result.formatted)


class Root:
    def __init__(self, api: GraphQL, call: Call):
        self.api, self.world, self.call = api, api.world, call

    def rental(self, ident: str) -> Rental:
        rental = self.world.rentals.get(ident)
        if not rental or not rental.alive or rental.machine.market != "runpod" or self.call.only not in (None, rental):
            raise GraphQLError(f"pod {ident} was not found")
        return rental

    def account(self) -> None:
        if self.call.only:
            raise GraphQLError("a pod's key may only look at, stop and terminate that pod")

    def pod_type(self, r: Rental) -> dict:
        pod = self.api.pod(r)
        runtime = pod["runtime"] and {
            "uptimeInSeconds": pod["runtime"]["uptime"],
            "ports": [
                {
                    "ip": p["ip"],
                    "isIpPublic": True,
                    "privatePort": p["private"],
                    "publicPort": p["public"],
                    "type": "tcp",
                }
                for p in pod["runtime"]["ports"]
            ],
        }
        return {
            "id": r.id, "name": r.order.label, "imageName": r.order.image,
            "desiredStatus": {"PROVISIONING": "RUNNING", "STARTING": "RUNNING", "ERROR": "EXITED"}.get(
                STATUS[r.state], STATUS[r.state]
            ),
            "podType": "INTERRUPTABLE" if r.order.spot else "RESERVED", "costPerHr": r.order.usd_per_hour,
            "adjustedCostPerHr": r.order.usd_per_hour, "gpuCount": r.order.count,
            "containerDiskInGb": int(r.order.disk_gb), "machineId": str(r.machine.id),
            "env": [f"{k}={v}" for k, v in r.order.env.items()], "ports": ",".join(r.order.extra["ports"]),
            "machine": {"gpuDisplayName": r.machine.gpu, "location": r.machine.region[:2],
                        "secureCloud": r.machine.secure, "dataCenterId": r.machine.region},
            "runtime": runtime,
        }  # fmt: skip

    # ---- queries

    def gpuTypes(self, info, input=None) -> list[dict]:
        self.account()
        one = (input or {}).get("id")
        return [self.gpu_type(gpu) for gpu in stock.gpu_names(self.world) if one in (None, gpu)]

    def gpu_type(self, gpu: str) -> dict:
        kind = [m for m in self.world.of("runpod") if m.gpu == gpu]
        side = {s: [m for m in kind if m.secure == s] for s in (True, False)}
        price = {s: min((m.usd_per_hour / m.count for m in ms), default=None) for s, ms in side.items()}
        spot = {s: min((m.min_bid / m.count for m in ms), default=None) for s, ms in side.items()}

        def lowest(info, input=None) -> dict:
            want = input or {}
            clouds = None if want.get("secureCloud") is None else [want["secureCloud"]]
            centers = [want["dataCenterId"]] if want.get("dataCenterId") else []
            able = stock.choose(self.world, gpu, want.get("gpuCount") or 1, clouds, centers)
            if not able:
                return dict.fromkeys(("minimumBidPrice", "uninterruptablePrice", "stockStatus"))
            return {
                "minimumBidPrice": min(m.min_bid / m.count for m in able),
                "uninterruptablePrice": able[0].usd_per_hour / able[0].count,
                "minVcpu": able[0].cpus // able[0].count,
                "minMemory": int(able[0].memory_gb / able[0].count),
                "stockStatus": stock.level(sum(map(self.world.free, able))).capitalize(),
                "maxUnreservedGpuCount": max(map(self.world.free, able)),
            }

        return {
            "id": gpu, "displayName": stock.short(gpu),
            "memoryInGb": int(kind[0].gpu_memory_gb), "secureCloud": bool(side[True]), "communityCloud": bool(side[False]),
            "securePrice": price[True], "communityPrice": price[False], "secureSpotPrice": spot[True],
            "communitySpotPrice": spot[False], "maxGpuCount": max(m.count for m in kind), "lowestPrice": lowest,
        }  # fmt: skip

    def pod(self, info, input=None) -> dict:
        return self.pod_type(self.rental((input or {}).get("podId", "")))

    def myself(self, info) -> dict:
        self.account()
        return {"id": "sim", "pods": [self.pod_type(r) for r in self.world.alive("runpod")]}

    # ---- mutations

    def podRentInterruptable(self, info, input) -> dict:
        self.account()
        for name in ("gpuTypeId", "imageName", "name"):
            if not input.get(name):
                raise GraphQLError(f"{name} is required")
        count, cloud = input.get("gpuCount") or 1, input.get("cloudType") or "ALL"
        clouds = {"ALL": None, "SECURE": [True], "COMMUNITY": [False]}[cloud]
        centers = [input["dataCenterId"]] if input.get("dataCenterId") else []
        able = stock.choose(
            self.world, input["gpuTypeId"], count, clouds, centers, exact_cuda=input.get("allowedCudaVersions")
        )
        bid = input["bidPerGpu"] * count
        able = [m for m in able if bid >= self.world.min_bid(m, count)]
        if not able:
            raise GraphQLError(NO_CAPACITY)
        ends, stops = unix(input.get("terminateAfter")), unix(input.get("stopAfter"))
        ports = [p.strip() for p in (input.get("ports") or "").split(",") if p.strip()]
        volume = input.get("volumeInGb") or 0
        mounts = (
            {"persistent": {"size": volume, "path": input.get("volumeMountPath") or "/workspace"}} if volume else {}
        )
        try:
            order = self.api.order(
                input["name"], input["imageName"], input.get("containerDiskInGb") or 20, mounts,
                {pair["key"]: pair["value"] for pair in input.get("env") or []}, ports, input.get("dockerArgs") or "",
                bool(input.get("startSsh")), count=count, usd_per_hour=bid, spot=True,
                extra={"vcpus": 0, "cloud": "SECURE" if able[0].secure else "COMMUNITY"},
            )  # fmt: skip
            rental = self.world.rent(able[0], order)
        except Unavailable:
            raise GraphQLError(NO_CAPACITY) from None
        except Refusal as refusal:
            raise GraphQLError(refusal.message) from None
        rental.ends_at, rental.stops_at = ends, stops
        return self.pod_type(rental)

    async def podStop(self, info, input) -> dict:
        rental = self.rental(input["podId"])
        await self.world.halt(rental, "exited", "stopped by its user")
        return self.pod_type(rental)

    async def podTerminate(self, info, input) -> None:
        await self.world.end(self.rental(input["podId"]), "destroyed", "terminated by its user")
