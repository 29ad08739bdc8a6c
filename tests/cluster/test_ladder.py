"""Which offer next: scoring by hand-made numbers, and the climb over both simulated markets."""

import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from cluster import client, gpus, ladder, memory
from cluster.ladder import NothingLeft, Rung, climb
from cluster.market import Offer, Order, Unsure
from cluster.memory import Memory
from cluster.runpod import RunPod
from cluster.vast import Vast
from tests.cluster.conftest import simulator

ORDER = Order(
    label="shoestring/test;k=worker", image="img", disk_gb=20.0, bid_usd_per_hour=None, public_key="ssh-ed25519 A a"
)
SEARCH, CREATE = "POST /api/v0/bundles/", "PUT /api/v0/asks/{id}/"


def offer(id="1", gpu="RTX 4090", usd=0.30, **fields) -> Offer:
    fields = {"machine": f"m{id}", "count": 1, "gpu_memory_gb": 24, "spot": True, "disk_usd_per_hour": 0.01} | fields
    return Offer(market="vast", id=id, gpu=gpu, usd_per_hour=usd, **fields)


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


@pytest.mark.parametrize(
    ("rung", "usd", "price"),
    [
        ({"bid": 1.5}, 0.20, 0.30),
        ({"bid": 1.5}, 0.30, 0.39),  # not above the cap of 0.40, of which the disk is 0.01
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
            r"ladder\[1\].spot: runpod rents nothing by bid \(any more\). Remove it: on demand is its default",
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
    """Each market's own kind; one name for a list; a new GPU whose speed is given."""
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
    Memory(path).bad("runpod", "", "never booted")  # RunPod doesn't say which machine it was
    Memory(path).down("runpod", "HTTP 503")
    kept = Memory(path)
    assert kept.is_bad("vast", "12") == "never booted (0 min ago)" and kept.is_down("runpod") == "HTTP 503 (0 min ago)"
    assert kept.is_bad("vast", "13") is kept.is_bad("runpod", "") is kept.is_down("vast") is None
    now = time.time()
    monkeypatch.setattr(memory.time, "time", lambda: now + memory.DOWN_S + 1)
    assert kept.is_down("runpod") is None and kept.is_bad("vast", "12") == "never booted (1 min ago)"
    monkeypatch.setattr(memory.time, "time", lambda: now + memory.BAD_S + 1)
    assert kept.is_bad("vast", "12") is None
    kept.bad("vast", "14", "x")
    assert list(json.loads(path.read_text())) == ["vast/14"]  # what is forgotten isn't kept


@pytest.fixture(scope="module")
def sim():
    with simulator(boot=0.2) as started:
        yield started


@pytest.fixture
def markets(sim):
    found = {
        "vast": Vast(sim.env["VAST_API_KEY"], sim.vast_url, pace=200),
        "runpod": RunPod(sim.env["RUNPOD_API_KEY"], sim.runpod_url),
    }
    yield found
    for market in found.values():
        for r in market.list():
            market.destroy(r.id)
    for m in sim.get("machines"):
        if m["taken"]:
            sim.control("release", machine=m["id"])


RUNGS = ladder.parse(
    [
        {"market": "vast", "gpus": ["RTX 4090"], "max_usd_per_hour": 1.0},
        {"market": "vast", "gpus": ["RTX 4090"], "max_usd_per_hour": 1.0, "spot": False},
        {"market": "runpod", "gpus": ["RTX 4090"], "max_usd_per_hour": 2.0, "spot": False, "image": "runpod/img"},
    ]
)


def cheapest_work(market, rung):
    return [o.id for o in ladder.ranked(rung, market.offers(rung.want(ORDER.disk_gb)))]


def test_the_cheapest_work_is_rented(markets, tmp_path):
    first = cheapest_work(markets["vast"], RUNGS[0])[0]
    offer, id = climb(RUNGS, markets, ORDER, Memory(tmp_path / "m"))
    (rental,) = markets["vast"].list()
    assert (offer.id, id) == (first, rental.id) and rental.spot
    assert rental.usd_per_hour == pytest.approx(offer.usd_per_hour * 1.1)


def test_a_taken_offer_is_followed_by_the_next(sim, markets, tmp_path):
    ids = cheapest_work(markets["vast"], RUNGS[0])
    sim.control("next", market="vast", fault="taken", count=2)
    offer, _ = climb(RUNGS, markets, ORDER, Memory(tmp_path / "m"))
    assert offer.id == ids[2] and offer.spot


def test_spot_then_on_demand_then_the_other_market(sim, markets, tmp_path):
    """Every create on Vast fails: 3 machines as spot, and as by then they are somebody's, none on demand."""
    asked = []

    def rent(market, offer, order):
        asked.append((market.name, offer.spot, order.bid_usd_per_hour is None, order.image))
        return market.create(offer, order)

    sim.control("next", market="vast", fault="taken", count=3)
    offer, id = climb(RUNGS, markets, ORDER, Memory(tmp_path / "m"), rent)
    assert asked == [("vast", True, False, "img")] * 3 + [("runpod", False, True, "runpod/img")]
    assert (
        offer.market == "runpod" and [r.id for r in markets["runpod"].list()] == [id] and markets["vast"].list() == []
    )


def test_nodes_that_climb_at_once_get_machines_of_their_own(markets, tmp_path):
    kept = Memory(tmp_path / "m")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: climb(RUNGS, markets, ORDER, kept), range(4)))
    assert sorted(o.market for o, _ in found) == ["runpod", "vast", "vast", "vast"]
    assert {id for _, id in found} == {r.id for m in markets.values() for r in m.list()}
    assert len({o.id for o, _ in found}) == 4


def test_too_dear_then_on_demand(markets, tmp_path):
    cheap = ladder.parse([{"market": "vast", "gpus": ["RTX 4090"], "max_usd_per_hour": 0.05}])
    offer, _ = climb([*cheap, RUNGS[1]], markets, ORDER, Memory(tmp_path / "m"))
    assert not offer.spot


def test_nothing_left_says_why(sim, markets, tmp_path):
    kept = Memory(tmp_path / "m")
    rungs = ladder.parse(
        [
            {"market": "vast", "gpus": ["RTX 4090"], "max_usd_per_hour": 0.05},
            {"market": "vast", "gpus": ["RTX 4090"], "max_usd_per_hour": 1, "bid_usd_per_hour": 0.01},
            {"market": "vast", "gpus": ["RTX 9999"], "max_usd_per_hour": 1, "tflops": {"RTX 9999": 1}},
            {"market": "vast", "gpus": ["RTX 3060"], "max_usd_per_hour": 1},
            {"market": "vast", "gpus": ["Tesla T4"], "max_usd_per_hour": 1},
            {"market": "runpod", "gpus": ["RTX 4090"], "max_usd_per_hour": 1},
        ]
    )
    (bad,) = markets["vast"].offers(rungs[3].want(20.0))
    kept.bad("vast", bad.machine, "its disk is full")
    sim.control("next", market="vast", fault="taken")
    markets["runpod"] = RunPod("wrong", sim.runpod_url)
    with pytest.raises(NothingLeft) as caught:
        climb(rungs, markets, ORDER, kept)
    markets["runpod"] = RunPod(sim.env["RUNPOD_API_KEY"], sim.runpod_url)
    lines = str(caught.value).splitlines()
    least = min(o.usd_per_hour + o.disk_usd_per_hour for o in markets["vast"].offers(rungs[0].want(20.0)))
    assert lines[0] == "Nothing to rent."
    assert lines[1] == (
        f"  rung 1, vast spot, 1 × RTX 4090: the cheapest of 3 costs ${least:.3f}/h with its disk, max_usd_per_hour is 0.05"
    )
    assert (
        lines[2].endswith("bid_usd_per_hour is 0.01")
        and lines[3] == "  rung 3, vast spot, 1 × RTX 9999: none is offered"
    )
    assert lines[4].endswith(f"only bad machines are offered: {bad.machine}: its disk is full (0 min ago)")
    assert "none of 1 could be had, of 1 within the price; the last: vast, create: HTTP 404" in lines[5]
    assert "rung 6, runpod on demand, 1 × RTX 4090: refused: runpod, offers: the API key is refused" in lines[6]
    assert len(lines) == 7


def test_a_kind_that_is_down_is_left_alone_for_a_while_and_the_others_are_not(sim, markets, tmp_path, monkeypatch):
    """On Vast the search for bids fails as long as it is tried; that of machines on demand works."""
    monkeypatch.setattr(client, "sleep", lambda s: None)
    kept = Memory(tmp_path / "m")
    sim.control("api", market="vast", endpoint=SEARCH, fault="503", count=client.TRIES)
    offer, _ = climb(RUNGS, markets, ORDER, kept)
    assert (offer.market, offer.spot) == ("vast", False) and "HTTP 503" in kept.is_down("vast spot")
    assert kept.is_down("vast") is None
    before = sim.state()["calls"]
    assert climb(RUNGS[:1] + RUNGS[2:], markets, ORDER, kept)[0].market == "runpod"
    new = {k: n - before.get(k, 0) for k, n in sim.state()["calls"].items() if n != before.get(k, 0)}
    assert not any("/api/" in k for k in new) and new["POST /v2/pods 201"] == 1


def test_a_market_that_nobody_reaches_is_left_alone_whole(sim, markets, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "sleep", lambda s: None)
    kept = Memory(tmp_path / "m")
    markets["vast"] = Vast("k", "http://127.0.0.1:9", pace=1000)
    assert climb(RUNGS, markets, ORDER, kept)[0].market == "runpod"
    assert "can't be reached" in kept.is_down("vast") and kept.is_down("vast on demand") is None
    markets["vast"] = Vast(sim.env["VAST_API_KEY"], sim.vast_url, pace=200)


@pytest.mark.parametrize("answer", ["410html", "410json", "404html", "404json"])
def test_a_retired_endpoint_fails_its_rungs_alone(sim, markets, tmp_path, answer):
    """RunPod's spot went like that: https://docs.runpod.io/pods/pricing has none since May 2026."""
    kept, rungs = Memory(tmp_path / "m"), [RUNGS[2], replace(RUNGS[2], count=0, gpus=())]
    for endpoint in ("POST /v2/pods", "GET /v2/catalog/gpus"):
        sim.control("retire", market="runpod", endpoint=endpoint, **{"as": answer})
    with pytest.raises(
        NothingLeft, match=r"rung 1, runpod on demand.* refused: runpod, offers: HTTP 4(.|\n)*rung 2.* refused"
    ):
        climb(rungs, markets, ORDER, kept)
    sim.control("retire", market="runpod", endpoint="POST /v2/pods", **{"as": None})
    offer, _ = climb(rungs, markets, ORDER, kept)
    assert (offer.market, offer.count) == ("runpod", 0)
    sim.control("retire", market="vast", endpoint=CREATE, **{"as": answer})
    sim.control("retire", market="runpod", endpoint="GET /v2/catalog/gpus", **{"as": None})
    offer, _ = climb(RUNGS, markets, ORDER, kept)
    assert (offer.market, offer.count) == ("runpod", 1)
    sim.control("retire", market="vast", endpoint=CREATE, **{"as": None})
    assert climb(RUNGS, markets, ORDER, kept)[0].market == "vast"  # as soon as it is there again


def test_nothing_else_is_rented_while_a_create_is_open(sim, markets, tmp_path):
    kept = Memory(tmp_path / "m")
    sim.control("api", market="vast", endpoint=CREATE, fault="500")
    with pytest.raises(Unsure, match="may have worked"):
        climb(RUNGS, markets, ORDER, kept)
    assert markets["runpod"].list() == [] and "HTTP 500" in kept.is_down("vast spot")


@pytest.mark.skipif(os.geteuid() != 0, reason="boxes are Linux namespaces and need root")
def test_the_orders_key_opens_the_machine_and_its_start_has_run(tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    order = replace(ORDER, public_key=(tmp_path / "key.pub").read_text(), start="echo here > /tmp/started")
    ssh = ["ssh", "-i", tmp_path / "key", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]
    ssh += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    with simulator(boxes="namespaces", boot=0.2) as sim:
        vast = Vast(sim.env["VAST_API_KEY"], sim.vast_url, pace=200)
        markets = {"vast": vast, "runpod": RunPod(sim.env["RUNPOD_API_KEY"], sim.runpod_url)}
        for rung in (RUNGS[0], RUNGS[2]):
            climb([rung], markets, order, Memory(tmp_path / "m"))
        sim.wait(lambda s: [r["state"] for r in s["rentals"]] == ["running"] * 2)
        for host, port in [r.ssh for m in markets.values() for r in m.list()]:
            for _ in range(50):  # sshd and start run beside each other
                said = subprocess.run([*ssh, "-p", str(port), f"root@{host}", "cat /tmp/started"], capture_output=True)
                if said.returncode == 0:
                    break
                time.sleep(0.2)
            assert said.stdout == b"here\n", said
