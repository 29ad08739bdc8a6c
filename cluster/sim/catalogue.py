"""The machines of the default world. Prices are roughly those of 2026; the GPUs are imaginary."""

from __future__ import annotations

import random
from dataclasses import replace

from cluster.sim.rental import Machine

# gpu, GPUs in the machine, GB of each, $/h per GPU, CUDA, vCPUs per GPU, GB of RAM per GPU
VAST = [
    ("RTX 3090", 1, 24, 0.22, 13.0, 8, 32),
    ("RTX 3090", 1, 24, 0.24, 12.6, 12, 64),
    ("RTX 3090", 2, 24, 0.23, 13.0, 16, 64),
    ("RTX 4090", 1, 24, 0.38, 13.0, 16, 64),
    ("RTX 4090", 1, 24, 0.40, 13.0, 16, 64),
    ("RTX 4090", 1, 24, 0.44, 12.8, 12, 48),
    ("RTX 4090", 4, 24, 0.42, 13.0, 16, 64),
    ("A100 SXM4", 1, 80, 1.05, 13.0, 16, 120),
    ("A100 PCIE", 2, 40, 0.72, 12.4, 16, 96),
    ("Tesla T4", 1, 16, 0.12, 12.4, 4, 16),
    ("RTX 3060", 1, 12, 0.09, 12.2, 4, 16),
    ("", 0, 0, 0.05, None, 8, 32),
    ("", 0, 0, 0.06, None, 16, 64),
]
RUNPOD = [
    ("NVIDIA GeForce RTX 3090", 2, 24, 0.46, 13.0, 8, 32),
    ("NVIDIA GeForce RTX 3090", 2, 24, 0.46, 12.4, 8, 32),
    ("NVIDIA GeForce RTX 4090", 4, 24, 0.69, 13.0, 16, 64),
    ("NVIDIA GeForce RTX 4090", 2, 24, 0.69, 13.0, 16, 64),
    ("NVIDIA RTX A5000", 2, 24, 0.27, 13.0, 6, 32),
    ("NVIDIA RTX A4000", 2, 16, 0.25, 12.6, 6, 32),
    ("NVIDIA A40", 2, 48, 0.40, 13.0, 9, 50),
    ("NVIDIA L4", 1, 24, 0.39, 13.0, 12, 50),
    ("NVIDIA A100-SXM4-80GB", 4, 80, 1.49, 13.0, 16, 120),
    ("NVIDIA H100 80GB HBM3", 2, 80, 2.69, 13.0, 20, 180),
    ("cpu3c", 0, 0, 0.03, None, 32, 64),
    ("cpu5c", 0, 0, 0.035, None, 32, 64),
]
VAST_PLACES = ["Sweden, SE", "Texas, US", "Quebec, CA", "Germany, DE", "Japan, JP"]
RUNPOD_PLACES = ["EU-SE-1", "US-TX-3", "CA-MTL-1", "EU-RO-1"]


def machines(seed: int) -> list[Machine]:
    """Returns the machines, which depend only on the seed. The lowest spot bid is 35 to 60% of the listed price."""
    chance = random.Random(seed)
    made = []
    for market, rows, places in (("vast", VAST, VAST_PLACES), ("runpod", RUNPOD, RUNPOD_PLACES)):
        for gpu, count, memory, price, cuda, cpus, ram in rows:
            each = max(count, 1)
            secure = not any(m.gpu == gpu for m in made)  # RunPod's second machine of a type is in the COMMUNITY cloud
            if market == "runpod" and not secure:
                price *= 0.75
            made.append(
                Machine(
                    id=(100_000 if market == "vast" else 500_000) + len(made),
                    market=market,
                    gpu=gpu,
                    count=count,
                    gpu_memory_gb=memory,
                    usd_per_hour=round(price * each, 4),
                    min_bid=round(price * each * chance.uniform(0.35, 0.6), 4),
                    disk_usd_per_gb_month=round(chance.uniform(0.1, 0.25), 3) if market == "vast" else 0.1,
                    cpus=cpus * each,
                    memory_gb=ram * each,
                    disk_gb=round(chance.uniform(100, 900)),
                    reliability=round(chance.uniform(0.95, 0.999), 4),
                    region=places[len(made) % len(places)],
                    cuda=cuda,
                    up_mbps=round(chance.uniform(200, 1000)),
                    down_mbps=round(chance.uniform(300, 2000)),
                    up_usd_per_gb=round(chance.uniform(0.0, 0.02), 4) if market == "vast" else 0.0,
                    down_usd_per_gb=round(chance.uniform(0.0, 0.02), 4) if market == "vast" else 0.0,
                    secure=secure,
                )
            )
    return made


def bad_machines(seed: int) -> list[Machine]:
    """Returns machines that are by far the cheapest of their kind, each with a defect that makes it useless."""
    chance = random.Random(seed + 7)
    made = []
    for market, gpus in (("vast", ("RTX 4090", "RTX 3090", "RTX 3060")), ("runpod", ("NVIDIA GeForce RTX 4090",))):
        for gpu in gpus:
            _, _, memory, price, cuda, cpus, ram = next(
                r for r in (VAST if market == "vast" else RUNPOD) if r[0] == gpu
            )
            one = Machine(
                id=(150_000 if market == "vast" else 550_000) + len(made) * 10,
                market=market,
                gpu=gpu,
                count=1,
                gpu_memory_gb=memory,
                usd_per_hour=round(price * 0.5, 4),
                min_bid=round(price * 0.5 * chance.uniform(0.35, 0.6), 4),
                cpus=cpus,
                memory_gb=ram,
                region="US-TX-3" if market == "runpod" else "Texas, US",
                cuda=cuda,
                secure=False,
            )
            faults = (
                {"cuda": 12.2, "down_mbps": 40.0, "verified": False}
                if market == "vast"
                else {"cuda": 12.2, "public_ip": False}
            )
            made += [replace(one, id=one.id + i, **{name: value}) for i, (name, value) in enumerate(faults.items())]
    return made
