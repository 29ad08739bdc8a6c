"""Climbing ladders on the simulated markets."""

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from cluster.market import http, ladder
from cluster.market.bad_machines import Memory
from cluster.market.base import Order, Unsure
from cluster.market.ladder import NothingLeft, climb
from cluster.market.runpod import RunPod
from cluster.market.vast import Vast
from tests.cluster import e2e
from tests.cluster.conftest import simulator

ORDER = Order(
    label="shoestring/test;k=worker", image="img", disk_gb=20.0, bid_usd_per_hour=None, public_key="ssh-ed25519 A a"
)
SEARCH, CREATE = "POST /api/v0/bundles/", "PUT /api/v0/asks/{id}/"


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
    """Every create on Vast fails: 3 machines are tried as spot; by then others have rented them, so none is tried on demand."""
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
    """On Vast, every search for bids fails; the search for on-demand machines works."""
    monkeypatch.setattr(http, "sleep", lambda s: None)
    kept = Memory(tmp_path / "m")
    sim.control("api", market="vast", endpoint=SEARCH, fault="503", count=http.TRIES)
    offer, _ = climb(RUNGS, markets, ORDER, kept)
    assert (offer.market, offer.spot) == ("vast", False) and "HTTP 503" in kept.is_down("vast spot")
    assert kept.is_down("vast") is None
    before = sim.state()["calls"]
    assert climb(RUNGS[:1] + RUNGS[2:], markets, ORDER, kept)[0].market == "runpod"
    new = {k: n - before.get(k, 0) for k, n in sim.state()["calls"].items() if n != before.get(k, 0)}
    assert not any("/api/" in k for k in new) and new["POST /v2/pods 201"] == 1


def test_an_unreachable_market_is_skipped_entirely(sim, markets, tmp_path, monkeypatch):
    monkeypatch.setattr(http, "sleep", lambda s: None)
    kept = Memory(tmp_path / "m")
    markets["vast"] = Vast("k", "http://127.0.0.1:9", pace=1000)
    assert climb(RUNGS, markets, ORDER, kept)[0].market == "runpod"
    assert "can't be reached" in kept.is_down("vast") and kept.is_down("vast on demand") is None
    markets["vast"] = Vast(sim.env["VAST_API_KEY"], sim.vast_url, pace=200)


@pytest.mark.parametrize("answer", ["410html", "410json", "404html", "404json"])
def test_a_retired_endpoint_fails_its_rungs_alone(sim, markets, tmp_path, answer):
    """This happened to RunPod's spot: https://docs.runpod.io/pods/pricing has had none since May 2026."""
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
    assert climb(RUNGS, markets, ORDER, kept)[0].market == "vast"  # as soon as it is available again


def test_nothing_else_is_rented_while_a_create_is_open(sim, markets, tmp_path):
    kept = Memory(tmp_path / "m")
    sim.control("api", market="vast", endpoint=CREATE, fault="500")
    with pytest.raises(Unsure, match="may have worked"):
        climb(RUNGS, markets, ORDER, kept)
    assert markets["runpod"].list() == [] and "HTTP 500" in kept.is_down("vast spot")


@e2e.NAMESPACES
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
            for _ in range(50):  # sshd and the start command run in parallel
                said = subprocess.run([*ssh, "-p", str(port), f"root@{host}", "cat /tmp/started"], capture_output=True)
                if said.returncode == 0:
                    break
                time.sleep(0.2)
            assert said.stdout == b"here\n", said
