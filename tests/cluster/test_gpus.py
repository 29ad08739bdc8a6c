"""cluster/market/gpus.py: which names mean which GPU, and the GPUs' speeds."""

import pytest

from cluster.market import gpus
from cluster.market.base import Order

ORDER = Order(
    label="shoestring/test;k=worker", image="img", disk_gb=20.0, bid_usd_per_hour=None, public_key="ssh-ed25519 A a"
)
SEARCH, CREATE = "POST /api/v0/bundles/", "PUT /api/v0/asks/{id}/"


@pytest.mark.parametrize(
    ("wanted", "name", "fits"),
    [
        ("RTX 4090", "RTX 4090", True),
        ("RTX 4090", "NVIDIA GeForce RTX 4090", True),
        ("RTX 4090", "RTX 4090D", False),
        ("RTX 3090", "RTX 3090 Ti", False),
        ("A100", "A100 SXM4", True),
        ("A100", "NVIDIA A100 80GB PCIe", True),
        ("A100 SXM4", "NVIDIA A100-SXM4-80GB", True),
        ("A100 PCIE", "A100 SXM4", False),
        ("A10", "A100 PCIE", False),
        ("L40", "L40S", False),
        ("H100", "NVIDIA H100 80GB HBM3", True),
        ("RTX 6000Ada", "RTX 6000 Ada", True),
        ("RTX 4080S", "RTX 4080 SUPER", True),
        ("T4", "Tesla T4", True),
        ("RTX_4090", "RTX 4090", True),
    ],
)
def test_names_of_gpus(wanted, name, fits):
    assert gpus.fits(wanted, name) is fits


def test_speeds_of_gpus():
    assert [gpus.speed(n) for n in ("RTX 4090", "A100-SXM4-80GB", "H200 SXM", "RTX 9999")] == [
        165.2,
        312.0,
        989.4,
        None,
    ]
