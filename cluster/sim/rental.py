"""A market's machine, the order for it, the resulting rental with its bill, and the rental's box."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from cluster.sim.ports import Port

HOURS_PER_MONTH = 730.0
"""Disks are priced per month and billed per second."""


@dataclass
class Machine:
    id: int
    market: Literal["vast", "runpod"]
    gpu: str
    """The GPU's name. If count is 0, a CPU flavour (RunPod) or "" (Vast)."""
    count: int
    """Number of GPUs. Vast rents only the whole machine, RunPod any number of free ones."""
    gpu_memory_gb: float
    usd_per_hour: float
    """On-demand price of the whole machine; for a CPU flavour, of one vCPU."""
    min_bid: float
    """Lowest winning bid, in $/h for the whole machine; RunPod has no bids."""
    disk_usd_per_gb_month: float = 0.1
    cpus: int = 8
    memory_gb: float = 32
    disk_gb: float = 500
    reliability: float = 0.99
    region: str = "Sweden, SE"
    cuda: float | None = 12.8
    up_mbps: float = 500
    down_mbps: float = 500
    up_usd_per_gb: float = 0.0
    down_usd_per_gb: float = 0.0
    secure: bool = True
    """RunPod: in the SECURE cloud, otherwise COMMUNITY. Vast: in a certified data centre."""
    verified: bool = True
    """Verified by Vast."""
    public_ip: bool = True
    """False: its containers run but can't be reached (RunPod's COMMUNITY)."""
    taken: bool = False
    """Rented by someone else."""


@dataclass
class Order:
    """A request to create a rental, in the form common to both APIs."""

    label: str
    image: str
    disk_gb: float
    count: int
    usd_per_hour: float
    """Price while it runs: the bid or the listed price."""
    spot: bool
    disk_usd_per_hour: float
    """Price of the disk while it runs."""
    stopped_disk_usd_per_hour: float
    """Price of the disk while it exists but doesn't run."""
    env: dict[str, str]
    ports: list[int]
    """The container's mapped TCP ports; a port ≥ 70000 stands for one that is mapped to the same number (Vast)."""
    start: str
    """Shell commands that run after the boot."""
    keys: list[str]
    """authorized_keys; [] and `sshd` False: no SSH server."""
    sshd: bool = True
    volume: str = ""
    """Mount point of a persistent volume in the container."""
    flat: bool = False
    """Connected to the network on which boxes reach each other, if the world has one."""
    extra: dict = field(default_factory=dict)
    """Data that only the API that created the order uses."""


@dataclass
class Charge:
    what: Literal["compute", "disk"]
    usd_per_hour: float
    start: float
    end: float | None = None


State = Literal[
    "provisioning", "loading", "running", "frozen", "restarting", "stopped", "exited", "offline", "error", "destroyed", "vanished"
]  # fmt: skip


@dataclass
class Boot:
    """The arguments of a box's boot."""

    rental: Rental
    urls: dict[str, str]
    """{market: URL of its simulated API}"""
    flat: bool
    """The world has a network on which boxes reach each other."""
    sshd: bool
    ended: Callable[[], Awaitable[None]]
    """Called when the container's command ends."""


class Box(Protocol):
    """An instance. `boot` raises OSError if it fails."""

    address: str
    """Its own address; "" before the boot."""
    public: str
    """The address on which its ports are mapped."""
    mapped: dict[int, Port]
    """{container port: public port}"""

    async def boot(self, boot: Boot) -> None: ...

    async def kill(self) -> None:
        """Ends its processes and its network; keeps its disk."""

    async def remove(self) -> None:
        """Also removes its disk."""

    async def link(self, up: bool) -> None:
        """Connects or disconnects its network."""


@dataclass
class Rental:
    id: str
    machine: Machine
    order: Order
    key: str
    """API key for this rental only, found in the box's environment."""
    box: Box
    created: float
    state: State = "provisioning"
    why: str = ""
    intended: Literal["running", "stopped"] = "running"
    started: float | None = None
    """Start time of the running container."""
    first_started: float | None = None
    ended: float | None = None
    charges: list[Charge] = field(default_factory=list)
    booting: asyncio.Task | None = None
    dark: bool = False
    public_ip: bool = True
    """Whether the API shows the address on which its ports are mapped."""

    @property
    def name(self) -> str:
        return f"{self.machine.market} {self.id}"

    @property
    def alive(self) -> bool:
        """Whether it is listed and billed."""
        return self.ended is None

    def usd(self, now: float, what: str | None = None) -> float:
        """Returns the cost until `now` of `what` (such as compute or disk); None: of everything."""
        charges = [c for c in self.charges if what in (None, c.what)]
        return sum(((c.end or now) - c.start) * c.usd_per_hour for c in charges) / 3600

    def charge(self, what: str, usd_per_hour: float, now: float) -> None:
        """Sets the price of `what` from now on; 0: it is no longer billed."""
        for c in self.charges:
            if c.what == what and c.end is None:
                if c.usd_per_hour == usd_per_hour:
                    return
                c.end = now
        if usd_per_hour:
            self.charges.append(Charge(what, usd_per_hour, now))
