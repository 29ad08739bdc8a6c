"""A machine of a market, what is ordered of it, what that costs, and the box that it becomes."""

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
    """A flavour of CPU machine (RunPod) or "" (Vast) where count is 0."""
    count: int
    """GPUs. Vast rents the whole machine, RunPod as many of them as are free."""
    gpu_memory_gb: float
    usd_per_hour: float
    """Of the whole machine, on demand. A CPU flavour's: of one vCPU."""
    min_bid: float
    """The lowest bid per hour for the whole machine that wins now; RunPod takes none."""
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
    """RunPod's SECURE cloud; else COMMUNITY. On Vast: in a certified data centre."""
    verified: bool = True
    """By Vast."""
    public_ip: bool = True
    """False: its containers run, and nobody reaches them (RunPod's COMMUNITY)."""
    taken: bool = False
    """Rented by somebody else."""


@dataclass
class Order:
    """What both APIs make of a request to create."""

    label: str
    image: str
    disk_gb: float
    count: int
    usd_per_hour: float
    """While it runs: the bid, or the listed price."""
    spot: bool
    disk_usd_per_hour: float
    """While it runs."""
    stopped_disk_usd_per_hour: float
    """While it exists and doesn't run."""
    env: dict[str, str]
    ports: list[int]
    """TCP ports of the container that are mapped; a port ≥ 70000 is mapped to itself (Vast)."""
    start: str
    """Shell commands for the booted box."""
    keys: list[str]
    """authorized_keys; [] with `sshd` False: no SSH server."""
    sshd: bool = True
    volume: str = ""
    """Where a persistent volume is mounted in the container."""
    flat: bool = False
    """On the network where the boxes reach each other, if the world has one."""
    extra: dict = field(default_factory=dict)
    """What only the API that made it understands."""


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
    """What a box is booted with."""

    rental: Rental
    urls: dict[str, str]
    """Of the simulated APIs, by market."""
    flat: bool
    """The world has a network where boxes reach each other."""
    sshd: bool
    ended: Callable[[], Awaitable[None]]
    """Called when the container's command has ended."""


class Box(Protocol):
    """An instance. `boot` raises OSError."""

    address: str
    """Of its own; "" before it booted."""
    public: str
    """The address that its ports are mapped on."""
    mapped: dict[int, Port]
    """By the container's port."""

    async def boot(self, boot: Boot) -> None: ...

    async def kill(self) -> None:
        """Its processes and its network are gone, its disk is kept."""

    async def remove(self) -> None:
        """Its disk too."""

    async def link(self, up: bool) -> None:
        """Its network cable."""


@dataclass
class Rental:
    id: str
    machine: Machine
    order: Order
    key: str
    """Opens the API for this rental only; in the box's environment."""
    box: Box
    created: float
    state: State = "provisioning"
    why: str = ""
    intended: Literal["running", "stopped"] = "running"
    started: float | None = None
    """Of the running container."""
    first_started: float | None = None
    ended: float | None = None
    charges: list[Charge] = field(default_factory=list)
    booting: asyncio.Task | None = None
    dark: bool = False
    public_ip: bool = True
    """Its API shows the address at which its ports are mapped."""

    @property
    def name(self) -> str:
        return f"{self.machine.market} {self.id}"

    @property
    def alive(self) -> bool:
        """Listed, and billed for something."""
        return self.ended is None

    def usd(self, now: float, what: str | None = None) -> float:
        """Until now; None: of everything."""
        charges = [c for c in self.charges if what in (None, c.what)]
        return sum(((c.end or now) - c.start) * c.usd_per_hour for c in charges) / 3600

    def charge(self, what: str, usd_per_hour: float, now: float) -> None:
        """From now on `what` costs that much; 0: nothing more."""
        for c in self.charges:
            if c.what == what and c.end is None:
                if c.usd_per_hour == usd_per_hour:
                    return
                c.end = now
        if usd_per_hour:
            self.charges.append(Charge(what, usd_per_hour, now))
