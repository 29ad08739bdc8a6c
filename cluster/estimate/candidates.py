"""Machines on which a job could run: this machine, a T4 on Colab, and the markets' offers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.market.base import MarketError
from lib.config.job import Scale
from lib.runtime import hardware

GIB = 1 << 30


@dataclass(frozen=True)
class Candidate:
    where: str
    device: str
    """A GPU's name, or "cpu × cores" as in provenance.json."""
    gpus: int
    """Of one machine; 0: it has none."""
    memory: int
    """Bytes of each GPU; of the whole machine if it has none."""
    machines: int = 1
    usd_per_hour: float = 0.0
    """Of one machine, disk included; for spot, our bid."""
    spot: bool = False
    boot_usd: float = 0.0
    """The host's charge for the traffic of one boot: image and packages."""
    session_s: float | None = None
    """Seconds after which the machine is always taken away. None: no such limit."""


def here(scale: Scale) -> Candidate:
    gpus = hardware.local_gpus() if scale.device != "cpu" else 0
    if gpus:
        import torch

        there = torch.cuda.get_device_properties(0)
        return Candidate("this machine", there.name, gpus, there.total_memory)
    return Candidate("this machine", f"cpu × {scale.cpus_per_worker}", 0, hardware.local_memory())


COLAB = Candidate("Colab", "Tesla T4", 1, round(14.7 * GIB), session_s=12 * 3600.0)
"""Free: one T4 of 15,360 MiB, part of it reserved by the driver, for at most 12 hours
(https://research.google.com/colaboratory/faq.html), or less when demand is high."""


def offered(workers: int, gpus: tuple[str, ...], max_price: float, disk_gb: float) -> tuple[list[Candidate], list[str]]:
    """Returns (the best offer of each kind of machine, why each missing market is missing). Machines have one GPU, or one per worker.

    The best offer has the lowest price per operation (cluster/market/ladder.py). max_price: $/h of a machine.
    """
    from cluster.market import ladder, registry
    from cluster.node import autoscaler_config

    found: dict[tuple, tuple[float, Candidate]] = {}
    missing = []
    for name in registry.MARKETS:
        try:
            market = registry.find(name)
            for count in sorted({1, workers}):
                for spot in (True, False):
                    rung = ladder.Rung(name, max_usd_per_hour=max_price, gpus=gpus, count=count, spot=spot)
                    for offer in ladder.ranked(rung, market.offers(rung.want(disk_gb))):
                        usd = rung.price(offer) + offer.disk_usd_per_hour
                        memory = round(offer.gpu_memory_gb * 0.98 * GIB)  # the driver reserves some
                        machines = -(-workers // count)
                        boot = offer.download_usd_per_gb * autoscaler_config.SETUP_GB
                        one = Candidate(name, offer.gpu, count, memory, machines, usd, spot, boot)
                        rank = ladder.usd_per_eflop(rung, offer) or math.inf
                        key = (name, offer.gpu, count, spot)
                        if key not in found or rank < found[key][0]:
                            found[key] = (rank, one)
        except (ValueError, MarketError) as e:
            missing.append(str(e))
    return [c for _, c in found.values()], missing
