"""The interface of a GPU market: its offers, its rentals, and the five calls on which everything else is built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

LABEL = "shoestring/"
"""Prefix of the label of every rental made by this project; the cluster's name and its tags follow (tags.py)."""
State = Literal["starting", "running", "lost"]
"""Of a rental; see Rental.state."""


class MarketError(RuntimeError):
    """A market call failed. Never turn it into an empty result: Ray would treat every node as lost."""


class Unreachable(MarketError):
    """Nothing answers at the market's address, so no call to this market can work."""


class Taken(MarketError):
    """The offer is gone, or its price has risen. Another offer may still be available."""


class Refused(MarketError):
    """A call that a retry can't fix: a wrong key, no credit left, a malformed request."""


class Unsure(MarketError):
    """A create without a conclusive answer: it may have worked. Nothing else is rented until `list` shows whether its label exists."""


@dataclass(frozen=True)
class Want:
    """Requirements for an offer. None: no requirement."""

    gpus: tuple[str, ...] = ()
    """Acceptable GPU names (RTX 4090); a name without its variant (A100) matches all variants; empty: any GPU."""
    count: int = 1
    """GPUs in the machine; 0: a machine without."""
    gpu_memory_gb: float | None = None
    """Minimum memory of each GPU."""
    cpus: int = 0
    """Minimum virtual cores of the machine. RunPod doesn't report those of its GPU machines."""
    spot: bool = True
    max_usd_per_hour: float | None = None
    """For the whole machine, disk included."""
    disk_gb: float = 20.0
    min_cuda: float | None = None
    """Minimum CUDA version that the host's driver supports; ignored for a machine without a GPU."""
    min_reliability: float | None = None
    """0 to 1, as the market rates it."""
    min_download_mbps: float | None = None
    """Mb/s from the internet, as measured by Vast. RunPod doesn't report it."""
    verified: bool = True
    """Only hosts that Vast has verified. RunPod has no unverified ones."""
    datacenter: bool = False
    """Only machines in data centres: Vast's certified ones, RunPod's Secure cloud."""
    regions: tuple[str, ...] = ()
    network: str | None = None
    """Only machines of this flat network."""


@dataclass(frozen=True)
class Offer:
    market: str
    id: str
    """Passed to `create`."""
    machine: str
    """Key by which bad machines are remembered: on Vast the physical host; on RunPod, which doesn't identify the host,
    CLOUD/GPU/DATA CENTRE, with "" for an unknown data centre. Rental.machine holds the same key."""
    gpu: str
    count: int
    gpu_memory_gb: float
    """Of each GPU."""
    spot: bool
    usd_per_hour: float
    """For the whole machine without its disk; for spot, the lowest bid that would win now."""
    disk_usd_per_hour: float
    """For the requested disk_gb."""
    upload_usd_per_gb: float = 0.0
    download_usd_per_gb: float = 0.0
    reliability: float = 1.0
    cpus: float = 0.0
    memory_gb: float = 0.0
    region: str = ""
    cuda: float | None = None
    network: str | None = None
    """Machines of the same network reach each other directly."""
    datacenter: bool = False
    """In a data centre: certified by Vast, or RunPod's Secure cloud."""
    public_ip: bool = True
    """False: the machine may turn out to have no public address, so that nobody can log in to it (RunPod's Community cloud)."""


@dataclass(frozen=True)
class Registry:
    """Credentials with which a market pulls a private image."""

    server: str
    """Such as ghcr.io."""
    login: str = field(repr=False)
    """USER:TOKEN. Sent to the market; the rented machine doesn't need it."""
    runpod: str = ""
    """Id of a login stored at RunPod (`runpodctl registry create`), used there instead of `login`."""


@dataclass(frozen=True)
class Order:
    """What to run on an offer."""

    label: str
    image: str
    disk_gb: float
    bid_usd_per_hour: float | None
    """For the whole machine; None rents on demand."""
    public_key: str
    """OpenSSH public key that may log in as root. It is the only credential put on the machine."""
    env: dict[str, str] = field(default_factory=dict)
    """Must hold no secrets: the machine's owner can read it."""
    start: str = ""
    """Shell commands run as root when the machine has booted, beside sshd."""
    registry: Registry | None = None
    """None: the image is public."""


@dataclass(frozen=True)
class Rental:
    market: str
    id: str
    label: str
    state: State
    """lost: outbid, stopped, exited, offline or in error. It no longer answers, but may cost money until it is destroyed."""
    why: str
    """The market's own words for the state."""
    spot: bool
    usd_per_hour: float | None
    """Charged while it runs, without its disk. None: the market doesn't report it, and the ledger keeps the price at rental."""
    disk_usd_per_hour: float
    """Charged as long as the rental exists."""
    created: float
    """Unix time of its creation."""
    started: float | None
    """Unix time from which usd_per_hour is charged; None: not yet."""
    machine: str = ""
    gpu: str = ""
    count: int = 0
    ssh: tuple[str, int] | None = None
    """Public (host, port) of its sshd, once it runs."""
    private_ip: str | None = None
    """On the flat network."""
    still_charged: bool = False
    """Lost, but usd_per_hour is still charged: an instance that Vast froze."""

    @property
    def charged(self) -> bool:
        """Whether usd_per_hour is charged now, or will be as soon as it runs."""
        return self.state != "lost" or self.still_charged


class Market(ABC):
    """Each method makes one HTTP request (for a long list, one per page), retries where that can help, and raises MarketError on
    failure."""

    name: str
    has_spot: bool = True
    """Whether it rents to the highest bidder: cheaper, but only until outbid."""

    @abstractmethod
    def offers(self, want: Want) -> list[Offer]:
        """Returns matching offers, cheapest first; [] only if the market reports that there are none."""

    @abstractmethod
    def create(self, offer: Offer, order: Order) -> str:
        """Returns the id of the new rental, which `list` includes from now on. Raises Taken."""

    @abstractmethod
    def list(self) -> list[Rental]:
        """Returns every rental of the account whose label begins with LABEL."""

    @abstractmethod
    def destroy(self, id: str) -> None:
        """Ends a rental and all its charges. A rental that is already gone is not an error."""

    @abstractmethod
    def label(self, id: str, label: str) -> None: ...

    def logs(self, id: str) -> str:
        """Returns the last output of the rental's container and host; "" if the market keeps none. Makes a few requests."""
        return ""
