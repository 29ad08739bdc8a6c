"""The choice of the next offer: scores of hand-made numbers, and the climb over both simulated markets."""

import json
import time

import pytest

from cluster.market import bad_machines, gpus, ladder
from cluster.market.bad_machines import Memory
from cluster.market.base import Offer, Order
from cluster.market.ladder import Rung

ORDER = Order(
    label="shoestring/test;k=worker", image="img", disk_gb=20.0, bid_usd_per_hour=None, public_key="ssh-ed25519 A a"
)
SEARCH, CREATE = "POST /api/v0/bundles/", "PUT /api/v0/asks/{id}/"


def offer(id="1", gpu="RTX 4090", usd=0.30, **fields) -> Offer:
    fields = {"machine": f"m{id}", "count": 1, "gpu_memory_gb": 24, "spot": True, "disk_usd_per_hour": 0.01} | fields
    return Offer(market="vast", id=id, gpu=gpu, usd_per_hour=usd, **fields)


@pytest.mark.parametrize(
    ("rung", "usd", "price"),
    [
        ({"bid": 1.5}, 0.20, 0.30),
        ({"bid": 1.5}, 0.30, 0.39),  # within the cap of 0.40, of which the disk is 0.01
        ({"bid": 1.5}, 0.40, None),
        ({"bid_usd_per_hour": 0.25}, 0.20, 0.25),
        ({"bid_usd_per_hour": 0.25}, 0.26, None),
        ({"bid_usd_per_hour": 0.50}, 0.26, None),
        ({"spot": False}, 0.39, 0.39),
        ({"spot": False}, 0.395, None),
    ],
)
def test_price(rung, usd, price):
    assert Rung("vast", max_usd_per_hour=0.40, **rung).price(offer(usd=usd)) == pytest.approx(price)


def test_effective_price():
    """(0.30 × 1.1 + 0.01 + 2 GB/h × $0.02 + 5 GB/h × $0.01) ÷ 0.5 = 0.86; 0.86 $/h ÷ (165.2 × 3600 / 10⁶ EFLOP/h) = 1.446."""
    rung = Rung("vast", max_usd_per_hour=1.0, upload_gb_per_hour=2.0, download_gb_per_hour=5.0)
    one = offer(upload_usd_per_gb=0.02, download_usd_per_gb=0.01, reliability=0.5)
    assert ladder.effective(rung, one) == pytest.approx(0.86)
    assert ladder.usd_per_eflop(rung, one) == pytest.approx(0.86 / (165.2 * 0.0036))
    measured = Rung("vast", max_usd_per_hour=1.0, tflops={"RTX 4090": 50.0})
    assert ladder.usd_per_eflop(measured, offer(count=2)) == pytest.approx(0.34 / (100 * 0.0036))


def test_ranked():
    rung = Rung("vast", max_usd_per_hour=1.0, bid=1.0)
    offers = [
        offer("dear", usd=1.2),
        offer("unknown", "RTX 9999", 0.05),
        offer("slow", "Tesla T4", 0.15),  # 0.16 / 65
        offer("shaky", usd=0.29, reliability=0.5),  # 0.60 / 165.2
        offer("fast", "A100 SXM4", 0.60),  # 0.61 / 312
        offer("good", usd=0.30),  # 0.31 / 165.2
    ]
    assert [o.id for o in ladder.ranked(rung, offers)] == ["good", "fast", "slow", "shaky", "unknown"]
    hidden = [offer("cheap", usd=0.01, public_ip=False), offer("none", usd=2.0, public_ip=False)]
    assert [o.id for o in ladder.ranked(rung, offers + hidden)] == ["good", "fast", "slow", "shaky", "unknown", "cheap"]
    metered = [offer("metered", download_usd_per_gb=0.02), offer("free", usd=0.31)]  # 2.5 GB/h at $0.02 are $0.05/h
    assert [o.id for o in ladder.ranked(rung, metered)] == ["free", "metered"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"market": "vats", "max_usd_per_hour": 1}, r"ladder\[1\].market: there is no vats. Nearest: vast."),
        ({"market": "vast", "max_usd": 1}, r"ladder\[1\].max_usd is not a key. Nearest: max_usd_per_hour"),
        ({"market": "vast"}, r"ladder\[1\].max_usd_per_hour: Field required"),
        (
            {"market": "vast", "max_usd_per_hour": "much"},
            r"ladder\[1\].max_usd_per_hour: Input should be a valid number",
        ),
        ({"market": "vast", "max_usd_per_hour": 0}, "max_usd_per_hour: must be above 0"),
        ({"market": "vast", "max_usd_per_hour": 1, "bid": 0.9}, "bid: is a multiple of the lowest winning bid"),
        ({"market": "vast", "max_usd_per_hour": 1, "spot": False, "bid_usd_per_hour": 1}, "there is no bid on demand"),
        ({"market": "vast", "max_usd_per_hour": 1, "gpus": 4090}, r"gpus: .*tuple"),
        (
            {"market": "vast", "max_usd_per_hour": 1, "gpus": ["A100", "RTX 4900"]},
            r"ladder\[1\].gpus: RTX 4900 isn't a known GPU. Nearest: RTX 4090.* tflops: {RTX 4900: 100}",
        ),
        (
            {"market": "runpod", "max_usd_per_hour": 1, "spot": True},
            r"ladder\[1\].spot: runpod has no spot offers \(any more\). Remove the key: on demand is its default",
        ),
        ({"market": "runpod", "max_usd_per_hour": 1, "bid_usd_per_hour": 0.3}, "there is no bid on demand"),
        ("vast", r"ladder\[1\]: must be keys and values"),
    ],
)
def test_mistakes_in_a_ladder(row, says):
    with pytest.raises(ValueError, match=says):
        ladder.parse([{"market": "vast", "gpus": ["RTX 4090"], "max_usd_per_hour": 0.4}, row])
    with pytest.raises(ValueError, match="must be a list of rungs"):
        ladder.parse([])


def test_what_a_rung_may_leave_out():
    """Each market's own kind; a single name instead of a list; a new GPU with its speed given."""
    spot, asked = ladder.parse(
        [{"market": m, "max_usd_per_hour": 1, "gpus": "RTX_4090|A100"} for m in ("vast", "runpod")]
    )
    assert (spot.spot, asked.spot) == (True, False) and spot.gpus == asked.gpus == ("RTX 4090", "A100")
    assert (
        ladder.Rung("runpod", max_usd_per_hour=1).spot is False
        and str(asked) == "runpod on demand, 1 × RTX 4090 or A100"
    )
    (new,) = ladder.parse([{"market": "vast", "max_usd_per_hour": 1, "gpus": "RTX 4900", "tflops": {"RTX 4900": 300}}])
    assert new.gpus == ("RTX 4900",)
    want = spot.want(20.0)
    assert (want.min_download_mbps, want.verified, want.datacenter) == (200.0, True, False)
    for name in ("RTX 3060", "NVIDIA H100 80GB HBM3", "Rubin R200", "B300"):
        assert gpus.mistaken(name) == "", name


def test_memory(tmp_path, monkeypatch):
    path = tmp_path / "cluster" / "memory.json"
    Memory(path).bad("vast", "12", "never booted")
    Memory(path).bad("runpod", "", "never booted")  # RunPod doesn't identify the machine
    Memory(path).down("runpod", "HTTP 503")
    kept = Memory(path)
    assert kept.is_bad("vast", "12") == "never booted (0 min ago)" and kept.is_down("runpod") == "HTTP 503 (0 min ago)"
    assert kept.is_bad("vast", "13") is kept.is_bad("runpod", "") is kept.is_down("vast") is None
    now = time.time()
    monkeypatch.setattr(bad_machines.time, "time", lambda: now + bad_machines.DOWN_S + 1)
    assert kept.is_down("runpod") is None and kept.is_bad("vast", "12") == "never booted (1 min ago)"
    monkeypatch.setattr(bad_machines.time, "time", lambda: now + bad_machines.BAD_S + 1)
    assert kept.is_bad("vast", "12") is None
    kept.bad("vast", "14", "x")
    assert list(json.loads(path.read_text())) == ["vast/14"]  # expired entries aren't stored
