"""A market of rented machines: what it offers, what is rented of it, and the five calls that everything else is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

LABEL = "shoestring/"
"""What the label of every rental of ours begins with; after it the cluster's name, then its tags (tags.py)."""


class MarketError(RuntimeError):
    """The market didn't do what it was asked. Never turned into an empty answer: Ray would take every node for lost."""


class Unreachable(MarketError):
    """Nobody answers at the market's address: not one call of it can work, as where a single one fails."""


class Taken(MarketError):
    """The offer is no longer there, or not at this price. The next one may be."""


class Refused(MarketError):
    """A call that will be refused again: a wrong key, no money left, a malformed request."""


class Unsure(MarketError):
    """A create that got no answer to go by: it may have worked. Nothing else is rented before `list` has told by the label."""


@dataclass(frozen=True)
class Want:
    """What an offer has to have. None: anything."""

    gpus: tuple[str, ...] = ()
    """Names, any of which will do (RTX 4090); one without its form (A100) means all its forms; empty: any."""
    count: int = 1
    """GPUs in the machine; 0: a machine without."""
    gpu_memory_gb: float | None = None
    """Of each, at least."""
    cpus: int = 0
    """Virtual cores of the machine, at least. RunPod doesn't tell those of its GPU machines."""
    spot: bool = True
    max_usd_per_hour: float | None = None
    """For the whole machine, disk included."""
    disk_gb: float = 20.0
    min_cuda: float | None = None
    """That the host's driver supports, at least; no matter where there is no GPU."""
    min_reliability: float | None = None
    """0 to 1, as the market rates it."""
    min_download_mbps: float | None = None
    """Mb/s from the internet, as Vast measured it. RunPod tells none."""
    verified: bool = True
    """Only hosts that Vast has verified. RunPod knows no others."""
    datacenter: bool = False
    """Only machines in data centres: Vast's certified ones, RunPod's Secure cloud."""
    regions: tuple[str, ...] = ()
    network: str | None = None
    """Only machines of this flat network."""


@dataclass(frozen=True)
class Offer:
    market: str
    id: str
    """What `create` takes."""
    machine: str
    """By which what went bad is remembered: on Vast the physical host; RunPod doesn't say which that is, so CLOUD/GPU/DATA CENTRE,
    the last "" where it isn't known. Rental.machine says the same of a rental."""
    gpu: str
    count: int
    gpu_memory_gb: float
    """Of each."""
    spot: bool
    usd_per_hour: float
    """Of the whole machine without its disk; for spot, the lowest bid that would win now."""
    disk_usd_per_hour: float
    """Of the wanted disk_gb."""
    upload_usd_per_gb: float = 0.0
    download_usd_per_gb: float = 0.0
    reliability: float = 1.0
    cpus: float = 0.0
    memory_gb: float = 0.0
    region: str = ""
    cuda: float | None = None
    network: str | None = None
    """Machines with the same one reach each other directly."""
    datacenter: bool = False
    """In a data centre: certified by Vast, or RunPod's Secure cloud."""
    public_ip: bool = True
    """False: it may turn out to have none, so that nobody can log in to it (RunPod's Community cloud)."""


@dataclass(frozen=True)
class Registry:
    """How a market pulls a private image."""

    server: str
    """ghcr.io"""
    login: str = field(repr=False)
    """USER:TOKEN; the market sees it, the rented machine doesn't have to."""
    runpod: str = ""
    """Id of the login that RunPod keeps (`runpodctl registry create`), instead of `login`."""


@dataclass(frozen=True)
class Order:
    """What is to run on an offer."""

    label: str
    image: str
    disk_gb: float
    bid_usd_per_hour: float | None
    """Of the whole machine; None rents on demand."""
    public_key: str
    """OpenSSH public key that may log in as root. It is the only thing of ours on the machine."""
    env: dict[str, str] = field(default_factory=dict)
    """No secrets: the machine is a stranger's."""
    start: str = ""
    """Shell commands run as root when the machine has booted, beside sshd."""
    registry: Registry | None = None
    """Of a private image."""


@dataclass(frozen=True)
class Rental:
    market: str
    id: str
    label: str
    state: Literal["starting", "running", "lost"]
    """lost: outbid, stopped, exited, offline or in error. It answers no more, but may cost until it is destroyed."""
    why: str
    """The market's own words for the state."""
    spot: bool
    usd_per_hour: float | None
    """While it runs, without its disk. None: the market doesn't say; the ledger then goes on with what it was rented for."""
    disk_usd_per_hour: float
    """As long as it exists."""
    created: float
    """Unix time since when it exists."""
    started: float | None
    """Unix time since when usd_per_hour is charged; None: not yet."""
    machine: str = ""
    gpu: str = ""
    count: int = 0
    ssh: tuple[str, int] | None = None
    """Where its sshd can be reached from outside, once it runs."""
    private_ip: str | None = None
    """On the flat network."""
    still_charged: bool = False
    """Lost, and usd_per_hour is charged all the same: an instance that Vast froze."""

    @property
    def charged(self) -> bool:
        """Whether usd_per_hour is charged now, or will be as soon as it runs."""
        return self.state != "lost" or self.still_charged


class Market(ABC):
    """Every method is one HTTP request (of a long list, one a page), retried where that can help; MarketError where it failed."""

    name: str
    has_spot: bool = True
    """Whether it rents to the highest bidder, cheaper and until outbid."""

    @abstractmethod
    def offers(self, want: Want) -> list[Offer]:
        """Cheapest first; [] only where the market says that there is none."""

    @abstractmethod
    def create(self, offer: Offer, order: Order) -> str:
        """The id of the rental, which `list` knows from now on. Raises Taken."""

    @abstractmethod
    def list(self) -> list[Rental]:
        """Every rental of the account whose label begins with LABEL."""

    @abstractmethod
    def destroy(self, id: str) -> None:
        """Ends it and all that it costs; one that is gone already is no error."""

    @abstractmethod
    def label(self, id: str, label: str) -> None: ...

    def logs(self, id: str) -> str:
        """What the rental's container and its host printed last; "" where the market keeps nothing. A few requests."""
        return ""
