"""RunPod: pods on demand over its REST API v2; spot, which v2 doesn't have, over the older GraphQL API.

An offer is a kind of GPU in one of its clouds, not a machine: `create` lets RunPod choose one, so `Offer.machine` is "".
https://docs.runpod.io/api-reference-v2, https://graphql-spec.runpod.io
"""

from __future__ import annotations

import base64
import math
import re
import time
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel

from cluster import gpus
from cluster import runpod_replies as replies
from cluster.client import Client
from cluster.market import Market, MarketError, Offer, Order, Refused, Rental, Taken, Unsure, Want

URL = "https://api.runpod.io"
DISK_USD_PER_GB_HOUR = 0.10 / 730
"""Container disk, $0.10 per GB and month while the pod runs (https://docs.runpod.io/pods/pricing); no API tells it."""
BID = "SHOESTRING_BID_USD_PER_HOUR"
"""In a spot pod's env: v2 doesn't say which pods are spot."""
CPU = "CPU"
"""Begins the id of an offer without GPU, as SECURE, COMMUNITY and ALL (spot) begin the others."""


SPOT_OFFERS = """query Offers($count: Int!) {
  gpuTypes { id displayName memoryInGb maxGpuCount
    lowestPrice(input: {gpuCount: $count}) { minimumBidPrice stockStatus } }
}"""
REFUSALS = (
    "unauthorized",
    "not authorized",
    "forbidden",
    "not logged in",
    "balance",
    "insufficient funds",
    "variable ",
    "is required",
)
NO_CAPACITY = ("no longer any instances", "no instances", "not enough free", "outbid", "bid is too low", "minimum bid")
"""GraphQL's errors carry no code; these are in their messages, in lower case."""
RENT_SPOT = """mutation Rent($input: PodRentInterruptableInput!) { podRentInterruptable(input: $input) { id } }"""


class RunPod(Market):
    name = "runpod"

    def __init__(self, key: str, url: str | None = None, pace: float = 1.0):
        """pace: nothing to do here; RunPod says Retry-After where it was asked too often."""
        self.client = Client(self.name, url or URL, key)
        self._first: dict[str, float] = {}
        """When each pod was first listed: for one that doesn't say when it began."""

    def offers(self, want: Want) -> list[Offer]:
        """One request for spot; on demand one for each cloud. There is no spot without GPU, and only GPUs on demand
        can be asked for by region or network."""
        if (want.spot and not want.count) or ((want.spot or not want.count) and (want.network or want.regions)):
            return []
        if not want.count:
            found = self._cpus(want)
        else:
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
            "cloud": "SECURE" if cloud == CPU else cloud,
            "disk": round(order.disk_gb),
            "ports": ["22/tcp"],
            "env": env,
            "startSsh": True,
            **_compute(gpu, offer),
            **({"args": _args(order.start)} if order.start else {}),
            **({"dataCenterIds": offer.region.split(",")} if offer.region else {}),
            **({"globalNetworking": True} if offer.network else {}),
        }
        # 400 is RunPod's only word for "none of these is free", 403 that for "not for this account": the next may be
        return self.client.call(
            "create",
            "POST",
            "/v2/pods",
            replies.Id,
            json=body,
            creates=True,
            taken=lambda status, text: status in (400, 403),
        ).id

    def list(self) -> list[Rental]:
        pods = self.client.call("list", "GET", "/v2/pods", replies.Pods).pods
        return [_rental(p, self._first.setdefault(p.id, time.time())) for p in pods if p.status != "TERMINATED"]

    def destroy(self, id: str) -> None:
        self.client.call("destroy", "DELETE", f"/v2/pods/{id}", replies.Done, gone=True)

    def label(self, id: str, label: str) -> None:
        self.client.call("label", "PATCH", f"/v2/pods/{id}", replies.Done, json={"name": label})

    def _cloud(self, cloud: str, want: Want) -> list[Offer]:
        if want.network and cloud != "SECURE":
            return []
        params = {"include": "AVAILABILITY", "product": "POD", "count": want.count, "cloud": cloud}
        if want.min_cuda is not None:
            params["minCudaVersion"] = str(want.min_cuda)
        if want.regions:
            params["countryCodes"] = ",".join(want.regions)
        types = self.client.call("offers", "GET", "/v2/catalog/gpus", replies.GpuTypes, params=params).gpus
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

    def _cpus(self, want: Want) -> list[Offer]:
        """The fewest cores that are enough, a power of two."""
        params = {"include": "AVAILABILITY", "product": "POD"}
        types = self.client.call("offers", "GET", "/v2/catalog/cpus", replies.CpuTypes, params=params).cpus
        offers = []
        for t in types:
            cores = 2 ** math.ceil(math.log2(max(t.vcpu.min, want.cpus, 2)))
            if t.availability != "NONE" and cores <= t.vcpu.max:
                offers.append(
                    Offer(
                        market=self.name,
                        id=f"{CPU}/{t.id}",
                        machine="",
                        gpu="",
                        count=0,
                        gpu_memory_gb=0,
                        spot=False,
                        usd_per_hour=t.price.securePerVcpu * cores,
                        disk_usd_per_hour=DISK_USD_PER_GB_HOUR * want.disk_gb,
                        cpus=cores,
                        memory_gb=t.ramGbPerVcpu * cores,
                    )
                )
        return offers

    def _spot(self, want: Want) -> list[Offer]:
        types = self._graphql("offers", SPOT_OFFERS, {"count": want.count}, replies.SpotTypes).gpuTypes
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
            "bidPerGpu": math.ceil(order.bid_usd_per_hour / offer.count * 1e6) / 1e6,
            "containerDiskInGb": round(order.disk_gb),
            "volumeInGb": 0,
            "ports": "22/tcp",
            "supportPublicIp": True,
            "startSsh": True,
            "env": [{"key": k, "value": v} for k, v in env.items()],
            "dockerArgs": _args(order.start) if order.start else "",
        }
        if offer.cuda:  # spot knows no lower bound, only a list
            some = (f"{major}.{minor}" for major in range(11, 16) for minor in range(10))
            variables["allowedCudaVersions"] = [v for v in some if float(v) >= offer.cuda]
        if order.ends_after_s is not None:
            ends = datetime.now(UTC) + timedelta(seconds=order.ends_after_s)
            variables["terminateAfter"] = ends.isoformat(timespec="seconds").replace("+00:00", "Z")
        pod = self._graphql(
            "create", RENT_SPOT, {"input": variables}, replies.Rented, creates=True
        ).podRentInterruptable
        if pod is None:
            raise Taken(f"{self.name}, create: no {gpu} is free at this bid")
        return pod.id

    def _graphql(self, kind: str, query: str, variables: dict, data: type[BaseModel], creates: bool = False):
        """GraphQL answers errors with 200: {"errors": [{"message"}], "data": null}."""
        body = {"query": query, "variables": variables}
        answer = self.client.call(kind, "POST", "/graphql", replies.Answer[data], json=body, creates=creates)
        said = "; ".join(e.message for e in answer.errors) or "the reply has neither data nor errors"
        text = f"{self.name}, {kind}: {said}"
        if answer.errors and any(s in said.lower() for s in REFUSALS):
            raise Refused(text)
        if answer.errors and any(s in said.lower() for s in NO_CAPACITY):
            raise Taken(text)
        if answer.errors or answer.data is None:
            raise Unsure(text) if creates else MarketError(text)
        return answer.data


def _args(start: str) -> str:
    """The pod's command line: `start` beside the start script of RunPod's images, which runs sshd. Packed, so that it can't
    matter how RunPod splits it."""
    packed = base64.b64encode(start.encode()).decode()
    return f"bash -c '(echo {packed} | base64 -d | bash) & test -x /start.sh && exec /start.sh; exec sleep infinity'"


def _compute(kind: str, offer: Offer) -> dict:
    if not offer.count:
        return {"cpu": {"id": kind, "vcpuCount": int(offer.cpus)}}
    return {"gpu": {"id": kind, "count": offer.count, **({"minCudaVersion": str(offer.cuda)} if offer.cuda else {})}}


STATES = {"PROVISIONING": "starting", "STARTING": "starting", "RUNNING": "running", "EXITED": "lost", "ERROR": "lost"}
"""Another status counts as running: Ray's own health check knows better whether the node lives."""


def _rental(pod: replies.Pod, first: float) -> Rental:
    bid = pod.env.get(BID)
    cost = pod.cost or (float(bid) if bid and re.fullmatch(r"[0-9.e-]+", bid) else pod.cost)
    return Rental(
        market=RunPod.name,
        id=pod.id,
        label=pod.name,
        state=STATES.get(pod.status, "running"),
        why=pod.status or "no status",
        spot=bid is not None,
        usd_per_hour=None if pod.disk is None else cost,
        disk_usd_per_hour=0.0 if pod.status == "EXITED" else DISK_USD_PER_GB_HOUR * (pod.disk or 0),
        created=pod.createdAt.timestamp() if pod.createdAt else first,
        started=pod.startedAt and pod.startedAt.timestamp(),
        gpu=pod.gpu.id if pod.gpu else "",
        count=pod.gpu.count if pod.gpu else 0,
        ssh=(pod.ssh.direct.host, pod.ssh.direct.port) if pod.ssh.direct else None,
        private_ip=pod.globalNetworking.ip,
    )
