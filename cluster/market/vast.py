"""Vast.ai: a market of machines of independent hosts, rented by bid (interruptible) or on demand.

An offer is one machine, so it may be taken by another customer between `offers` and `create`. An outbid instance is stopped, not
gone: its disk is billed until it is destroyed. https://docs.vast.ai/api-reference, whose source is github.com/vast-ai/docs.
"""

from __future__ import annotations

import base64
import gzip
import math
import threading
import time
from shlex import quote

import httpx

from cluster.market import gpus
from cluster.market import vast_replies as replies
from cluster.market.base import Market, MarketError, Offer, Order, Refused, Rental, State, Want
from cluster.market.http import Client

URL = "https://console.vast.ai"
PACE = {"offers": (10, 63.0), "create": (1, 4.7), "list": (1, 1.05), "destroy": (1, 3.15), "label": (1, 1.05)}
"""Call → (calls, seconds): Vast's limits per account with 5% more time, since calls arrive less evenly than they are sent."""

FRESH_S = 20.0
"""A search result is reused for this long, without offers already tried; else ten nodes started at once would wait minutes for the
rate limit."""
LOG_TRIES, LOG_AGAIN_S, LOG_S = 20, 0.3, 5.0
"""Attempts to download a log, seconds between two, and the timeout of one in seconds."""
PAGE = 25
"""Maximum instances in one reply."""
LONGEST_ONSTART = 4048
"""Maximum characters of a start script, by Vast's API documentation (api-reference/openapi.yaml, "Key Quirks")."""
LONGEST_LABEL = 127
"""Vast accepts 256 at create and 1,024 later, but recommends less than 128 (openapi/yaml/create_instance, label_instance)."""
HOURS_PER_MONTH = 730.0
"""Converts storage_cost, $/GB/month, to $/GB/h."""

STARTING = {None, "created", "loading", "scheduling", "rebooting", "restarting"}
LOST = {"stopped", "frozen", "exited", "offline"}
"""Values of actual_status. Others, running and unknown, count as running: unknown means that the host's heartbeat is late, and
whether the node is alive is left to Ray's health check."""
CHARGED = {"frozen"}
"""Lost, but "GPU charges apply", since its memory is kept (cli/reference/show-instance)."""
AS_BEFORE = {"rebooting", "restarting"}
""""Billed by previous state" (guides/serverless/worker-states)."""


class Vast(Market):
    name = "vast"

    def __init__(self, key: str, url: str | None = None, pace: float = 1.0):
        """pace: factor on Vast's rate limits, for a simulator with accelerated time."""
        self.client = Client(self.name, url or URL, key, {k: (n, s / pace) for k, (n, s) in PACE.items()})
        self._times: dict[str, tuple[float, float | None]] = {}
        self._fresh_s, self._search = FRESH_S / pace, threading.Lock()
        self._found: dict[Want, tuple[float, list[Offer]]] = {}

    def offers(self, want: Want) -> list[Offer]:
        with self._search:  # concurrent callers wait for this answer
            at, found = self._found.get(want, (-math.inf, []))
            if time.monotonic() >= at + self._fresh_s:
                found = self._ask(want)
                self._found[want] = time.monotonic(), found
            return [*found]

    def _ask(self, want: Want) -> list[Offer]:
        kind, price = ("bid", "min_bid") if want.spot else ("on-demand", "dph_total")
        query: dict = {
            "type": kind,
            "order": [[price, "asc"]],
            "limit": 64,
            "allocated_storage": want.disk_gb,
            "external": {"eq": False},
            "rentable": {"eq": True},
            "rented": {"eq": False},
            "num_gpus": {"eq": want.count},
            "disk_space": {"gte": want.disk_gb},
            "direct_port_count": {"gte": 1},
        }
        if want.gpus:
            forms = {name for name in gpus.TFLOPS if any(gpus.fits(w, name) for w in want.gpus)}
            query["gpu_name"] = {"in": sorted({*want.gpus, *forms})}
        for field, op, value in (
            ("gpu_ram", "gte", want.gpu_memory_gb and want.gpu_memory_gb * 1000),  # MB; a 24 GB card has 24,564
            ("cpu_cores_effective", "gte", want.cpus or None),
            ("cuda_max_good", "gte", want.min_cuda if want.count else None),
            ("reliability", "gte", want.min_reliability),
            ("inet_down", "gte", want.min_download_mbps),
            ("verified", "eq", want.verified or None),
            ("datacenter", "eq", want.datacenter or None),
            ("geolocation", "in", list(want.regions) or None),
            ("cluster_id", "eq", want.network),
        ):
            if value is not None:
                query[field] = {op: value}
        found = [
            _offer(a, want)
            for a in self.client.call("offers", "POST", "/api/v0/bundles/", replies.Asks, json=query).offers
        ]
        cap = want.max_usd_per_hour
        dear = [] if cap is None else [o for o in found if o.usd_per_hour + o.disk_usd_per_hour > cap]
        return sorted((o for o in found if o not in dear), key=lambda o: o.usd_per_hour + o.disk_usd_per_hour)

    def create(self, offer: Offer, order: Order) -> str:
        assert len(order.label) <= LONGEST_LABEL, order.label  # ensured by tags.py
        body = {
            "image": order.image,
            "disk": order.disk_gb,
            "label": order.label,
            "env": order.env,
            "onstart": _onstart(order),
            "runtype": "ssh_direct",  # maps 22/tcp
            "cancel_unavail": True,  # else an offer that was taken leaves a stopped instance with a billed disk
        }
        if order.bid_usd_per_hour is not None:
            body["price"] = order.bid_usd_per_hour
        if order.registry:  # arguments of `docker login`: https://docs.vast.ai/cli/reference/create-instance, --login
            user, _, token = order.registry.login.partition(":")
            body["image_login"] = f"-u {quote(user)} -p {quote(token)} {quote(order.registry.server)}"
        with self._search:
            self._found = {w: (at, [o for o in found if o.id != offer.id]) for w, (at, found) in self._found.items()}
        path = f"/api/v0/asks/{offer.id}/"
        return self.client.call(
            "create", "PUT", path, replies.Created, json=body, creates=True, taken=_taken
        ).new_contract

    def list(self) -> list[Rental]:
        found: list[replies.Instance] = []
        params: dict[str, int | str] = {"limit": PAGE}
        while True:
            page = self.client.call("list", "GET", "/api/v1/instances/", replies.Instances, params=params)
            found += page.instances
            if not page.next_token:
                break
            params = {"limit": PAGE, "after_token": page.next_token}
        self._times = {i.id: _times(i, self._times.get(i.id)) for i in found}
        return [_rental(i, *self._times[i.id]) for i in found]

    def destroy(self, id: str) -> None:
        self.client.call("destroy", "DELETE", f"/api/v0/instances/{id}/", replies.Done, json={}, gone=_gone)

    def label(self, id: str, label: str) -> None:
        assert len(label) <= LONGEST_LABEL, label
        self.client.call("label", "PUT", f"/api/v0/instances/{id}/", replies.Done, json={"label": label})

    def logs(self, id: str) -> str:
        """Fetches the log as `vastai logs` does: after a request it appears within seconds at an S3 address that needs no key."""
        asked = self.client.call(
            "logs", "PUT", f"/api/v0/instances/request_logs/{id}/", replies.Logs, json={"tail": "200"}
        )
        if not asked.result_url:
            return ""
        try:
            for _ in range(LOG_TRIES):
                found = httpx.get(asked.result_url, timeout=LOG_S)
                if found.status_code == 200:
                    return found.text
                time.sleep(LOG_AGAIN_S)
        except httpx.HTTPError as e:
            raise MarketError(f"vast, logs: {type(e).__name__}: {e}") from None
        return ""


def _taken(status: int, text: str) -> bool:
    return any(s in text for s in ("no_such_ask", "invalid_price", "not available"))


def _gone(status: int, body: dict) -> bool:
    """Recognises {"error": "not_found", "msg": "Instance not found"} and {"error": "no_such_instance", "msg": "Instance 7 not found."}
    (openapi/yaml/destroy_instance, manage_instance)."""
    text = f"{body.get('error')} {body.get('msg')}".lower()
    return status == 404 and ("no_such_instance" in text or ("instance" in text and "not found" in text))


def _offer(ask: replies.Ask, want: Want) -> Offer:
    disk = _disk(ask.storage_cost, ask.storage_total_cost, want.disk_gb)
    return Offer(
        market=Vast.name,
        id=ask.id,
        machine=ask.machine_id,
        gpu=ask.gpu_name or "",
        count=ask.num_gpus,
        gpu_memory_gb=round(ask.gpu_ram / 1024, 1),
        spot=want.spot,
        usd_per_hour=ask.min_bid if want.spot else ask.dph_total - disk,
        disk_usd_per_hour=disk,
        upload_usd_per_gb=ask.inet_up_cost,
        download_usd_per_gb=ask.inet_down_cost,
        reliability=ask.reliability,
        cpus=ask.cpu_cores_effective,
        memory_gb=round(ask.cpu_ram / 1024, 1),
        region=ask.geolocation or "",
        cuda=ask.cuda_max_good,
        network=ask.cluster_id,
        datacenter=ask.hosting_type == 1,  # as in vast-cli
    )


def _state(i: replies.Instance) -> State:
    """Returns the state. An outbid instance counts as lost, although Vast restarts it once its bid wins (its intended_status stays
    running)."""
    if i.intended_status == "stopped" or i.actual_status in LOST:
        return "lost"
    if i.actual_status in STARTING:
        return "starting"
    return "lost" if i.cur_state == "stopped" else "running"


def _times(i: replies.Instance, known: tuple[float, float | None] | None) -> tuple[float, float | None]:
    """Returns (created, started) as Unix times, stable between lists. Without uptime_mins, started is created, so that the cost errs
    high."""
    now = time.time()
    created = i.start_date or (known[0] if known else now)  # no start_date yet: its contract begins now
    before = known[1] if known else None
    told = i.uptime_mins is not None or before is not None
    billed = _state(i) == "running" or i.actual_status in CHARGED
    if not billed and not (i.actual_status in AS_BEFORE and i.intended_status != "stopped" and told):
        return created, None
    if i.uptime_mins is None:
        return created, created if before is None else before
    started = now - i.uptime_mins * 60
    same = before is not None and abs(before - started) < 90  # it wasn't restarted in between
    return created, before if same else started


def _rental(i: replies.Instance, created: float, started: float | None) -> Rental:
    disk = _disk(i.storage_cost, i.storage_total_cost, i.disk_space)
    mapped = (i.ports.get("22/tcp") if isinstance(i.ports, dict) else None) or []
    why = i.actual_status or "being provisioned"
    return Rental(
        market=Vast.name,
        id=i.id,
        label=i.label,
        state=_state(i),
        why=f"{why}, {' '.join(i.status_msg.split())[:200]}" if i.status_msg else why,
        spot=i.is_bid,
        usd_per_hour=None if i.dph_total is None else i.dph_total - disk,
        disk_usd_per_hour=disk,
        created=created,
        started=started,
        machine=i.machine_id,
        gpu=i.gpu_name or "",
        count=i.num_gpus,
        ssh=(i.public_ipaddr.strip(), mapped[0].HostPort) if mapped and i.public_ipaddr else None,
        private_ip=next(iter((i.local_ipaddrs or "").split()), None),
        still_charged=i.actual_status in CHARGED,
    )


def _disk(usd_per_gb_month: float, total: float | None, gb: float) -> float:
    """Returns the $/h of the disk: Vast's own total if it reports one."""
    return total if total is not None else usd_per_gb_month * gb / HOURS_PER_MONTH


def _onstart(order: Order) -> str:
    """Returns a start script that authorizes order.public_key and runs order.start. Vast runs it at every start of the container.

    Vast's images put every login into tmux, where Ray's commands would hang, unless ~/.no_auto_tmux exists
    (https://github.com/vast-ai/base-image, README; SkyPilot does the same). The script creates that file before it authorizes the
    key, so that no login comes too early. Raises Refused if the script is too long even when compressed.
    """
    key = quote(order.public_key.strip())
    script = f"""touch ~/.no_auto_tmux
mkdir -p ~/.ssh && chmod 700 ~/.ssh && touch ~/.ssh/authorized_keys && chmod 600 ~/.ssh/authorized_keys
grep -qxF {key} ~/.ssh/authorized_keys || echo {key} >> ~/.ssh/authorized_keys
{order.start}
"""
    if len(script) > LONGEST_ONSTART:
        packed = base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()
        script = f"echo {packed} | base64 -d | gunzip | bash\n"
        if len(script) > LONGEST_ONSTART:
            raise Refused(
                f"vast, create: the compressed start script has {len(script)} characters; Vast allows {LONGEST_ONSTART}"
            )
    return script
