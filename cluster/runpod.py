"""RunPod: pods on demand over its REST API v2; spot, which v2 doesn't have, over the older GraphQL API.

An offer is a kind of GPU in one of its clouds, not a machine: `create` lets RunPod choose one, so `Offer.machine` is "".
https://docs.runpod.io/api-reference-v2, https://graphql-spec.runpod.io
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel

from cluster import gpus
from cluster.client import Client
from cluster.market import LABEL, Market, MarketError, Offer, Order, Refused, Rental, Taken, Want

Data = TypeVar("Data", bound=BaseModel)

URL = "https://api.runpod.io"
DISK_USD_PER_GB_HOUR = 0.10 / 720
"""Container disk, $0.10 per GB and month while the pod runs (https://docs.runpod.io/pods/pricing); no API tells it."""
BID = "SHOESTRING_BID_USD_PER_HOUR"
"""In a spot pod's env: v2 doesn't say which pods are spot."""
GLOBAL = "global"
"""The one flat network: globalNetworking, on-demand pods of the secure cloud only."""


class _Price(BaseModel):
    secure: float
    community: float


class _Counts(BaseModel):
    secure: int
    community: int


class _Center(BaseModel):
    id: str
    availability: str


class _GpuType(BaseModel):
    id: str
    name: str
    memory: float
    secure: bool
    community: bool
    price: _Price
    maxCount: _Counts
    availability: Literal["NONE", "LOW", "MEDIUM", "HIGH"]
    dataCenters: list[_Center] = []


class _GpuTypes(BaseModel):
    gpus: list[_GpuType]


class _Lowest(BaseModel):
    minimumBidPrice: float | None
    stockStatus: str | None = None


class _SpotType(BaseModel):
    id: str
    displayName: str
    memoryInGb: float
    maxGpuCount: int | None = None
    lowestPrice: _Lowest | None


class _SpotTypes(BaseModel):
    gpuTypes: list[_SpotType]


class _Id(BaseModel):
    id: str


class _Rented(BaseModel):
    podRentInterruptable: _Id | None


class _Message(BaseModel):
    message: str


class _Answer(BaseModel, Generic[Data]):
    errors: list[_Message] = []
    data: Data | None = None


class _Endpoint(BaseModel):
    host: str
    port: int


class _Ssh(BaseModel):
    direct: _Endpoint | None


class _Gpu(BaseModel):
    id: str
    count: int = 1


class _Network(BaseModel):
    enabled: bool
    ip: str | None = None


class _Pod(BaseModel):
    id: str
    name: str
    status: Literal["PROVISIONING", "STARTING", "RUNNING", "EXITED", "ERROR", "TERMINATED"]
    cost: float
    disk: int
    env: dict[str, str]
    createdAt: datetime
    startedAt: datetime | None
    ssh: _Ssh
    globalNetworking: _Network
    gpu: _Gpu | None = None


class _Pods(BaseModel):
    pods: list[_Pod]


class _Done(BaseModel):
    pass


SPOT_OFFERS = """query Offers($count: Int!) {
  gpuTypes { id displayName memoryInGb maxGpuCount
    lowestPrice(input: {gpuCount: $count}) { minimumBidPrice stockStatus } }
}"""
RENT_SPOT = """mutation Rent($input: PodRentInterruptableInput!) { podRentInterruptable(input: $input) { id } }"""


class RunPod(Market):
    name = "runpod"

    def __init__(self, key: str, url: str | None = None):
        self.client = Client(self.name, url or URL, key)

    def offers(self, want: Want) -> list[Offer]:
        """One request for spot; on demand one for each cloud. RunPod has no spot within a network or region."""
        if want.spot and (want.network or want.regions):
            return []
        found = self._spot(want) if want.spot else [*self._cloud("SECURE", want), *self._cloud("COMMUNITY", want)]
        fit = [
            o
            for o in found
            if (not want.gpus or any(gpus.fits(w, o.gpu) or w == o.id.split("/")[1] for w in want.gpus))
            and o.gpu_memory_gb >= (want.gpu_memory_gb or 0)
            and (want.max_usd_per_hour is None or o.usd_per_hour + o.disk_usd_per_hour <= want.max_usd_per_hour)
        ]
        return sorted(fit, key=lambda o: o.usd_per_hour)

    def create(self, offer: Offer, order: Order) -> str:
        cloud, gpu = offer.id.split("/", 1)
        env = {**order.env, "PUBLIC_KEY": order.public_key.strip()}  # RunPod's images let it log in
        if order.bid_usd_per_hour is not None:
            return self._rent_spot(gpu, offer, order, env | {BID: str(order.bid_usd_per_hour)})
        body = {
            "name": order.label,
            "image": order.image,
            "cloud": cloud,
            "disk": round(order.disk_gb),
            "gpu": {"id": gpu, "count": offer.count, **({"minCudaVersion": str(offer.cuda)} if offer.cuda else {})},
            "ports": ["22/tcp"],
            "env": env,
            "startSsh": True,
            **({"args": _args(order.start)} if order.start else {}),
            **({"dataCenterIds": offer.region.split(",")} if offer.region else {}),
            **({"globalNetworking": True} if offer.network else {}),
        }
        # 400 is RunPod's only word for "none of these is free": the next offer may be
        return self.client.call(
            "create", "POST", "/v2/pods", _Id, json=body, creates=True, taken=lambda status, text: status == 400
        ).id

    def list(self) -> list[Rental]:
        pods = self.client.call("list", "GET", "/v2/pods", _Pods).pods
        return [_rental(p) for p in pods if p.name.startswith(LABEL) and p.status != "TERMINATED"]

    def destroy(self, id: str) -> None:
        self.client.call("destroy", "DELETE", f"/v2/pods/{id}", _Done, gone=True)

    def label(self, id: str, label: str) -> None:
        self.client.call("label", "PATCH", f"/v2/pods/{id}", _Done, json={"name": label})

    def _cloud(self, cloud: str, want: Want) -> list[Offer]:
        if want.network and cloud != "SECURE":
            return []
        params = {"include": "AVAILABILITY", "product": "POD", "count": want.count, "cloud": cloud}
        if want.min_cuda is not None:
            params["minCudaVersion"] = str(want.min_cuda)
        if want.regions:
            params["countryCodes"] = ",".join(want.regions)
        types = self.client.call("offers", "GET", "/v2/catalog/gpus", _GpuTypes, params=params).gpus
        here = cloud.lower()
        return [
            Offer(
                market=self.name,
                id=f"{cloud}/{t.id}",
                machine="",
                gpu=t.name,
                count=want.count,
                gpu_memory_gb=t.memory,
                spot=False,
                usd_per_hour=getattr(t.price, here) * want.count,
                disk_usd_per_hour=DISK_USD_PER_GB_HOUR * want.disk_gb,
                region=",".join(c.id for c in t.dataCenters if c.availability != "NONE") if want.regions else "",
                cuda=want.min_cuda,
                network=want.network,
            )
            for t in types
            if getattr(t, here) and t.availability != "NONE" and getattr(t.maxCount, here) >= want.count
        ]

    def _spot(self, want: Want) -> list[Offer]:
        types = self._graphql("offers", SPOT_OFFERS, {"count": want.count}, _SpotTypes).gpuTypes
        return [
            Offer(
                market=self.name,
                id=f"ALL/{t.id}",
                machine="",
                gpu=t.displayName,
                count=want.count,
                gpu_memory_gb=t.memoryInGb,
                spot=True,
                usd_per_hour=t.lowestPrice.minimumBidPrice * want.count,
                disk_usd_per_hour=DISK_USD_PER_GB_HOUR * want.disk_gb,
                cuda=want.min_cuda,
            )
            for t in types
            if t.lowestPrice and t.lowestPrice.minimumBidPrice and (t.maxGpuCount or want.count) >= want.count
        ]

    def _rent_spot(self, gpu: str, offer: Offer, order: Order, env: dict[str, str]) -> str:
        variables = {
            "name": order.label,
            "imageName": order.image,
            "cloudType": "ALL",
            "gpuTypeId": gpu,
            "gpuCount": offer.count,
            "bidPerGpu": order.bid_usd_per_hour / offer.count,
            "containerDiskInGb": round(order.disk_gb),
            "volumeInGb": 0,
            "ports": "22/tcp",
            "supportPublicIp": True,
            "startSsh": True,
            "env": [{"key": k, "value": v} for k, v in env.items()],
            "dockerArgs": _args(order.start) if order.start else "",
        }
        if order.ends_after_s is not None:
            ends = datetime.now(UTC) + timedelta(seconds=order.ends_after_s)
            variables["terminateAfter"] = ends.isoformat(timespec="seconds").replace("+00:00", "Z")
        pod = self._graphql("create", RENT_SPOT, {"input": variables}, _Rented, creates=True).podRentInterruptable
        if pod is None:
            raise Taken(f"{self.name}, create: no {gpu} is free at this bid")
        return pod.id

    def _graphql(self, kind: str, query: str, variables: dict, data: type[BaseModel], creates: bool = False):
        """GraphQL answers errors with 200: {"errors": [{"message"}], "data": null}."""
        body = {"query": query, "variables": variables}
        answer = self.client.call(kind, "POST", "/graphql", _Answer[data], json=body, creates=creates)
        if answer.errors:
            text = f"{self.name}, {kind}: {'; '.join(e.message for e in answer.errors)}"
            low = text.lower()
            if any(s in low for s in ("no longer any instances", "not available", "no instances", "outbid", "bid")):
                raise Taken(text)
            refused = any(
                s in low for s in ("unauthorized", "forbidden", "not logged in", "balance", "funds", "variable")
            )
            raise Refused(text) if refused else MarketError(text)
        if answer.data is None:
            raise MarketError(f"{self.name}, {kind}: the reply has neither data nor errors")
        return answer.data


def _args(start: str) -> str:
    """The pod's command line: `start` beside the image's own start script, which runs sshd. Packed, so that no quoting of
    RunPod's matters."""
    packed = base64.b64encode(start.encode()).decode()
    return f"bash -c '(echo {packed} | base64 -d | bash) & exec /start.sh'"


def _rental(pod: _Pod) -> Rental:
    states = {
        "PROVISIONING": "starting",
        "STARTING": "starting",
        "RUNNING": "running",
        "EXITED": "lost",
        "ERROR": "lost",
    }
    bid = pod.env.get(BID)
    return Rental(
        market=RunPod.name,
        id=pod.id,
        label=pod.name,
        state=states[pod.status],
        why=pod.status,
        spot=bid is not None,
        usd_per_hour=pod.cost or float(bid or 0),
        disk_usd_per_hour=0.0 if pod.status == "EXITED" else DISK_USD_PER_GB_HOUR * pod.disk,
        created=pod.createdAt.timestamp(),
        started=pod.startedAt and pod.startedAt.timestamp(),
        gpu=pod.gpu.id if pod.gpu else "",
        count=pod.gpu.count if pod.gpu else 0,
        ssh=(pod.ssh.direct.host, pod.ssh.direct.port) if pod.ssh.direct else None,
        private_ip=pod.globalNetworking.ip,
    )
