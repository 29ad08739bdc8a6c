"""RunPod: pods on demand over its REST API v2, in its Secure and its Community cloud. Its spot pods were removed in 2026.

An offer is a kind of GPU in one cloud and data centre, not a machine: RunPod chooses the machine at `create`, so bad machines are
remembered by these three. A Community pod may have no public address, and v2 can't request one as v1 could (supportPublicIp),
so Secure comes first. https://docs.runpod.io/api-reference-v2
"""

from __future__ import annotations

import base64
import json
import logging
import math
import time

from cluster.market import gpus
from cluster.market import runpod_replies as replies
from cluster.market.base import Market, MarketError, Offer, Order, Rental, State, Want
from cluster.market.http import Client

log = logging.getLogger(__name__)

URL = "https://api.runpod.io"
DISK_USD_PER_GB_HOUR = 0.10 / 730
"""Container disk, $0.10 per GB and month while the pod runs (https://docs.runpod.io/pods/pricing); no API reports it."""
LOG_S = 3.0
CPU = "CPU"
"""First part of the id of an offer without a GPU, in place of SECURE or COMMUNITY."""
LEVELS = ("NONE", "LOW", "MEDIUM", "HIGH")
"""Availability, lowest first."""


class RunPod(Market):
    name = "runpod"
    has_spot = False

    def __init__(self, key: str, url: str | None = None, pace: float = 1.0):
        """pace: unused, since RunPod limits its clients by Retry-After."""
        self.client = Client(self.name, url or URL, key)
        self._first: dict[str, float] = {}
        """Pod id → Unix time when it was first listed, used if its createdAt is missing."""

    def offers(self, want: Want) -> list[Offer]:
        """Makes one request per cloud, Secure first; if one fails, the other's offers are returned. There is no spot, and only GPUs can
        be filtered by region or network."""
        if want.spot or (not want.count and (want.network or want.regions)):
            return []
        found = self._gpus(want) if want.count else self._cpus(want)
        fit = [
            o
            for o in found
            if (not want.gpus or any(gpus.fits(w, o.gpu) or w == o.machine.split("/")[1] for w in want.gpus))
            and o.gpu_memory_gb >= (want.gpu_memory_gb or 0)
            and (want.max_usd_per_hour is None or o.usd_per_hour + o.disk_usd_per_hour <= want.max_usd_per_hour)
        ]
        return sorted(fit, key=lambda o: (not o.public_ip, o.usd_per_hour))

    def _gpus(self, want: Want) -> list[Offer]:
        found: list[Offer] = []
        failed: list[MarketError] = []
        for cloud in ["SECURE"] if want.network or want.datacenter else ["SECURE", "COMMUNITY"]:
            try:
                found += self._cloud(cloud, want)
            except MarketError as e:
                failed.append(e)
        if failed and not found:
            raise failed[0]
        for error in failed:
            log.warning(f"{error}. The other cloud is used instead.")
        return found

    def _cloud(self, cloud: str, want: Want) -> list[Offer]:
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
                id=(machine := f"{cloud}/{t.id}/{center}"),
                machine=machine,
                gpu=t.name,
                count=want.count,
                gpu_memory_gb=t.memory,
                spot=False,
                usd_per_hour=getattr(t.price, here) * want.count,
                disk_usd_per_hour=DISK_USD_PER_GB_HOUR * want.disk_gb,
                region=center,
                cuda=want.min_cuda,
                network=want.network,
                datacenter=cloud == "SECURE",
                public_ip=cloud
                == "SECURE",  # "will always have a public IP address" (v1's description of supportPublicIp)
            )
            for t in types
            if getattr(t, here) and t.availability != "NONE" and getattr(t.maxCount, here) >= want.count
            for center in _centers(t)
        ]

    def _cpus(self, want: Want) -> list[Offer]:
        """Returns offers without a GPU, each with the smallest sufficient power of two of cores."""
        params = {"include": "AVAILABILITY", "product": "POD"}
        types = self.client.call("offers", "GET", "/v2/catalog/cpus", replies.CpuTypes, params=params).cpus
        offers = []
        for t in types:
            cores = 2 ** math.ceil(math.log2(max(t.vcpu.min, want.cpus, 2)))
            if t.availability != "NONE" and cores <= t.vcpu.max:
                offers.append(
                    Offer(
                        market=self.name,
                        id=(machine := f"{CPU}/{t.id}/"),
                        machine=machine,
                        gpu="",
                        count=0,
                        gpu_memory_gb=0,
                        spot=False,
                        usd_per_hour=t.price.securePerVcpu * cores,
                        disk_usd_per_hour=DISK_USD_PER_GB_HOUR * want.disk_gb,
                        cpus=cores,
                        memory_gb=t.ramGbPerVcpu * cores,
                        datacenter=True,
                    )
                )
        return offers

    def create(self, offer: Offer, order: Order) -> str:
        assert order.bid_usd_per_hour is None, "RunPod takes no bids"
        cloud, kind = offer.machine.split("/")[:2]
        env = {**order.env, "PUBLIC_KEY": order.public_key.strip()}  # RunPod's images authorize it for login
        body = {
            "name": order.label,
            "image": order.image,
            "cloud": "SECURE" if cloud == CPU else cloud,
            "disk": round(order.disk_gb),
            "ports": ["22/tcp"],
            "env": env,
            "startSsh": True,
            **_compute(kind, offer),
            **({"args": _args(order.start)} if order.start else {}),
            **({"dataCenterIds": [offer.region]} if offer.region else {}),
            **({"globalNetworking": True} if offer.network else {}),
            **({"registry": order.registry.runpod} if order.registry and order.registry.runpod else {}),
        }
        # RunPod reports "none of these is free" only as 400; the next offer may be free
        return self.client.call(
            "create",
            "POST",
            "/v2/pods",
            replies.Id,
            json=body,
            creates=True,
            taken=lambda status, text: status == 400,
        ).id

    # In the signature of a method below this one, `list` would mean this method.
    def list(self) -> list[Rental]:
        pods = self.client.call("list", "GET", "/v2/pods", replies.Pods).pods
        return [_rental(p, self._first.setdefault(p.id, time.time())) for p in pods if p.status != "TERMINATED"]

    def destroy(self, id: str) -> None:
        self.client.call("destroy", "DELETE", f"/v2/pods/{id}", replies.Done, gone=_gone)

    def label(self, id: str, label: str) -> None:
        self.client.call("label", "PATCH", f"/v2/pods/{id}", replies.Done, json={"name": label})

    def logs(self, id: str) -> str:
        """Returns the last lines of the container and its host. RunPod streams these and then new ones, so the stream
        is cut off after LOG_S."""
        rows = [json.loads(row) for row in self.client.stream("logs", f"/v2/pods/{id}/logs", LOG_S, {"tail": 200})]
        return "\n".join(f"{row.get('ts', '')} {row.get('source', '')}: {row.get('line', '')}" for row in rows)


def _args(start: str) -> str:
    """Returns the pod's command line, which runs `start` beside the start script of RunPod's images (that one runs sshd). `start` is
    base64-encoded, so that it doesn't matter how RunPod splits the line."""
    packed = base64.b64encode(start.encode()).decode()
    return f"bash -c '(echo {packed} | base64 -d | bash) & test -x /start.sh && exec /start.sh; exec sleep infinity'"


def _centers(t: replies.GpuType) -> list[str]:
    """Returns the data centres that have this GPU, highest availability first; [""] if RunPod names none and chooses itself."""
    there = [c for c in t.dataCenters if c.availability in LEVELS[1:]]
    return [c.id for c in sorted(there, key=lambda c: -LEVELS.index(c.availability))] or [""]


def _gone(status: int, body: dict) -> bool:
    """Recognises {"title": "Not Found", "status": 404, "detail": "pod not found"}, and the details "resource not found" and "The
    requested Pod does not exist." of its OpenAPI description and migration guide. A retired path may also return 404, with another
    text."""
    detail = str(body.get("detail")).lower()
    missing = "not found" in detail or "does not exist" in detail
    return status == body.get("status") == 404 and missing and ("pod" in detail or "resource" in detail)


def _compute(kind: str, offer: Offer) -> dict:
    if not offer.count:
        return {"cpu": {"id": kind, "vcpuCount": int(offer.cpus)}}
    return {"gpu": {"id": kind, "count": offer.count, **({"minCudaVersion": str(offer.cuda)} if offer.cuda else {})}}


STATES: dict[str, State] = {
    "PROVISIONING": "starting",
    "STARTING": "starting",
    "RUNNING": "running",
    "EXITED": "lost",
    "ERROR": "lost",
}
"""Any other status counts as running; whether the node is alive is left to Ray's health check."""


def _rental(pod: replies.Pod, first: float) -> Rental:
    kind, count = (pod.gpu.id, pod.gpu.count) if pod.gpu else ("", 0)
    why = pod.status or "no status"
    if pod.status == "RUNNING" and pod.ssh.direct is None:
        why += f", without a public address for SSH yet ({pod.cloud or 'unknown'} cloud)"
    return Rental(
        market=RunPod.name,
        id=pod.id,
        label=pod.name,
        state=STATES.get(pod.status, "running"),
        why=why,
        spot=False,
        usd_per_hour=None if pod.disk is None else pod.cost,
        disk_usd_per_hour=0.0 if pod.status == "EXITED" else DISK_USD_PER_GB_HOUR * (pod.disk or 0),
        created=pod.createdAt.timestamp() if pod.createdAt else first,
        started=pod.startedAt.timestamp() if pod.startedAt else None,
        machine=f"{pod.cloud if count else CPU}/{kind or (pod.cpu.id if pod.cpu else '')}/{pod.dataCenterId if count else ''}",
        gpu=kind,
        count=count,
        ssh=(pod.ssh.direct.host, pod.ssh.direct.port) if pod.ssh.direct else None,
        private_ip=pod.globalNetworking.ip,
    )
