"""Vast's client against the simulated market, and pure functions on Vast's descriptions of an instance."""

import base64
import gzip
import json
import random
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from cluster.market import http, vast, vast_replies
from cluster.market.base import MarketError, Order, Refused, Taken, Unsure, Want
from cluster.market.vast import Vast
from cluster.money.ledger import Ledger
from cluster.node import watchdog
from tests.cluster.conftest import simulator

PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDqi me@here"
CREATE = "PUT /api/v0/asks/{id}/"


@pytest.fixture(scope="module")
def sim():
    with simulator(boot=0.2) as started:
        yield started


@pytest.fixture
def market(sim):
    found = Vast(sim.env["VAST_API_KEY"], sim.vast_url, pace=200)
    yield found
    for r in found.list():
        found.destroy(r.id)
    for m in sim.get("machines"):
        if m["taken"]:
            sim.control("release", machine=m["id"])


def order(bid=None, **options):
    options = {"label": "shoestring/test;k=worker", "image": "img", "disk_gb": 30.0, "public_key": PUBLIC_KEY} | options
    return Order(bid_usd_per_hour=bid, **options)


def test_offers_are_the_markets_own(sim, market):
    machines = {str(m["id"]): m for m in sim.get("machines") if m["market"] == "vast" and m["gpu"] == "RTX 4090"}
    spot = market.offers(Want(gpus=("RTX 4090",), disk_gb=73.0))
    asked = market.offers(Want(gpus=("RTX 4090",), disk_gb=73.0, spot=False))
    ones = {i for i, m in machines.items() if m["count"] == 1}
    assert {o.id for o in spot} == {o.id for o in asked} == ones and len(ones) == 3
    for o, field in [(o, "min_bid") for o in spot] + [(o, "usd_per_hour") for o in asked]:
        m = machines[o.id]
        assert o.usd_per_hour == pytest.approx(m[field], abs=1e-9)
        assert o.disk_usd_per_hour == pytest.approx(m["disk_usd_per_gb_month"] / 10)  # 73 of 730
        assert (o.gpu_memory_gb, o.reliability, o.region) == (24.0, m["reliability"], m["region"])
        assert o.upload_usd_per_gb == m["up_usd_per_gb"] and o.cuda == m["cuda"] and o.cpus == m["cpus"]
    total = [o.usd_per_hour + o.disk_usd_per_hour for o in asked]
    assert total == sorted(total)


def test_offers_are_filtered(market):
    assert {o.gpu for o in market.offers(Want(gpus=("A100",)))} == {"A100 SXM4"}  # the PCIE ones come in pairs
    assert {o.gpu for o in market.offers(Want(gpus=("A100",), count=2))} == {"A100 PCIE"}
    assert all(o.gpu_memory_gb >= 24 for o in market.offers(Want(gpu_memory_gb=24)))
    assert {o.count for o in market.offers(Want(count=0))} == {0}
    assert {o.cuda for o in market.offers(Want(min_cuda=13.0))} == {13.0}
    assert market.offers(Want(count=0, min_cuda=13.0))  # without a GPU, the driver doesn't matter
    certified = market.offers(Want(datacenter=True))
    assert certified and all(o.datacenter for o in certified) and not all(o.datacenter for o in market.offers(Want()))
    assert {o.region[-2:] for o in market.offers(Want(regions=("SE", "US")))} == {"SE", "US"}
    everything = market.offers(Want())
    some = market.offers(Want(max_usd_per_hour=0.2))
    assert some == [o for o in everything if o.usd_per_hour + o.disk_usd_per_hour <= 0.2] and some != everything
    assert market.offers(Want(gpus=("RTX 9999",))) == []


def test_slow_and_unverified_hosts_are_left_out_unless_asked_for(sim, market):
    first = next(m for m in sim.get("machines") if m["gpu"] == "RTX 3060") | {"gpu": "RTX 3070"}
    slow, strange = (
        first | {"id": 910_001, "down_mbps": 40},
        first | {"id": 910_002, "verified": False, "down_mbps": 300},
    )
    sim.control("machines", machines=[slow, strange])
    ids = lambda **wanted: {o.id for o in market.offers(Want(gpus=("RTX 3070",), **wanted))}  # noqa: E731
    assert ids() == {"910001"} and ids(verified=False) == {"910001", "910002"}
    assert ids(min_download_mbps=200.0) == set() and ids(min_download_mbps=200.0, verified=False) == {"910002"}


def test_life_of_a_bid(sim, market):
    offer = market.offers(Want(gpus=("RTX 3090",)))[0]
    bid = offer.usd_per_hour * 1.1
    before = time.time()
    id = market.create(offer, order(bid, env={"A": "b"}))
    (first,) = market.list()
    assert (first.id, first.label, first.state, first.spot) == (id, "shoestring/test;k=worker", "starting", True)
    assert first.usd_per_hour == pytest.approx(bid) and first.started is None and first.ssh is None
    assert first.disk_usd_per_hour == pytest.approx(offer.disk_usd_per_hour * 30 / 20)
    assert before - 1 < first.created < time.time() and (first.machine, first.gpu) == (offer.machine, "RTX 3090")
    sim.wait(lambda s: s["rentals"][0]["state"] == "running")
    (runs,) = market.list()
    assert runs.state == "running" and runs.ssh == ("127.0.0.1", runs.ssh[1]) and runs.ssh[1] > 1024
    assert runs.created == first.created and runs.started == pytest.approx(
        sim.state()["rentals"][0]["started"], abs=0.5
    )
    time.sleep(0.3)
    assert market.list() == [runs]  # so that a ledger records no change if there is none
    market.label(id, "shoestring/test;k=head")
    sim.control("outbid", id=id)
    (lost,) = market.list()
    assert (lost.label, lost.state, lost.ssh) == ("shoestring/test;k=head", "lost", None) and "outbid" in lost.why
    assert lost.disk_usd_per_hour > 0  # billed until it is destroyed
    market.destroy(id)
    market.destroy(id)
    assert market.list() == []


def test_a_search_serves_all_who_want_the_same(sim, monkeypatch):
    """Vast allows ten searches a minute."""
    slow, search = Vast(sim.env["VAST_API_KEY"], sim.vast_url), "POST /api/v0/bundles/ 200"
    before = sim.state()["calls"][search]
    with ThreadPoolExecutor(4) as pool:
        (first, *others) = pool.map(slow.offers, [Want(gpus=("RTX 4090",))] * 4)
    assert sim.state()["calls"][search] == before + 1 and others == [first] * 3 and len(first) == 3
    with pytest.raises(Taken):
        slow.create(first[0], order(first[0].usd_per_hour / 2))
    assert slow.offers(Want(gpus=("RTX 4090",))) == first[1:]  # a tried offer isn't offered again
    assert slow.offers(Want(gpus=("RTX 3090",))) and sim.state()["calls"][search] == before + 2
    now = time.monotonic()
    monkeypatch.setattr(vast.time, "monotonic", lambda: now + vast.FRESH_S)
    assert slow.offers(Want(gpus=("RTX 4090",))) == first and sim.state()["calls"][search] == before + 3


def test_other_peoples_rentals_are_not_ours(market):
    offer = market.offers(Want(gpus=("RTX 3090",), spot=False))[0]
    id = market.create(offer, order(label="my own box"))
    assert market.list() == []
    market.destroy(id)


def test_what_other_instances_hold_hides_none_of_ours():
    odd = {"id": 1, "label": None, "num_gpus": None}
    ours = {"id": 2, "label": "shoestring/c;k=w", "actual_status": None, "intended_status": "running", "is_bid": True}
    ours |= {"dph_total": 0.3, "start_date": None, "machine_id": 7, "gpu_name": "RTX 4090", "num_gpus": 1}
    page = {"instances": [odd, ours | {"storage_cost": None, "disk_space": None}], "next_token": None}
    [found] = vast_replies.Instances.model_validate_json(json.dumps(page)).instances
    assert found.id == "2" and found.disk_space == 0
    del ours["id"]  # a rental that can't be destroyed would count as gone if it were skipped
    with pytest.raises(ValueError, match="id"):
        vast_replies.Instances.model_validate_json(json.dumps({"instances": [ours]}))


def test_all_pages_are_listed(sim, market):
    first = next(m for m in sim.get("machines") if m["gpu"] == "RTX 3060")
    sim.control("machines", machines=[first | {"id": 900_000 + i} for i in range(30)])
    offers = market.offers(Want(gpus=("RTX 3060",)))
    ids = {market.create(o, order(o.usd_per_hour * 1.1)) for o in offers[:27]}
    assert len(ids) == 27 and {r.id for r in market.list()} == ids


def test_an_offer_that_is_gone_is_taken(sim, market):
    offer = market.offers(Want(gpus=("RTX 4090",)))[0]
    with pytest.raises(Taken, match="no_such_ask"):
        market.create(offer, order(offer.usd_per_hour * 0.5))
    sim.control("take", machine=int(offer.id))
    with pytest.raises(Taken, match=r"vast, create: HTTP 404: .*no_such_ask"):
        market.create(offer, order(offer.usd_per_hour * 2))
    assert market.list() == []  # and there is no stopped instance whose disk is billed


@pytest.mark.parametrize("fault", ["404html", "404json", "410html", "410json"])
def test_a_retired_create_is_no_offer_that_is_taken(sim, market, fault):
    """Eight others would be tried in vain."""
    offer = market.offers(Want(gpus=("RTX 4090",)))[0]
    sim.control("api", market="vast", endpoint=CREATE, fault=fault)
    with pytest.raises(Refused, match=f"HTTP {fault[:3]}"):
        market.create(offer, order(offer.usd_per_hour * 2))


def test_a_wrong_key_is_refused_without_being_told(sim):
    key = "wrong-key-0123456789"
    with pytest.raises(Refused, match=r"the API key is refused \(HTTP 404: auth_error.*Check VAST_API_KEY") as caught:
        Vast(key, sim.vast_url).offers(Want())
    assert key not in str(caught.value)


def test_faults(sim, market, monkeypatch):
    monkeypatch.setattr(http, "sleep", lambda s: time.sleep(min(s, 0.05)))
    sim.control("api", market="vast", endpoint="GET /api/v1/instances/", fault="503", count=2)
    assert market.list() == []
    sim.control("api", market="vast", endpoint="GET /api/v1/instances/", fault="429", count=1)
    assert market.list() == []
    sim.control("api", market="vast", endpoint="GET /api/v1/instances/", fault="json")
    assert market.list() == []
    sim.control("api", market="vast", endpoint="GET /api/v1/instances/", fault="shape")
    with pytest.raises(MarketError, match="vast, list: the reply's instances is wrong: Field required"):
        market.list()
    offer = market.offers(Want())[0]
    for fault in ("500", "json", "shape"):
        sim.control("api", market="vast", endpoint=CREATE, fault=fault)
        with pytest.raises(Unsure, match="may have worked"):
            market.create(offer, order(offer.usd_per_hour))


def test_a_malformed_order_is_refused(market):
    offer = market.offers(Want())[0]
    with pytest.raises(Refused, match="disk"):
        market.create(offer, order(offer.usd_per_hour, disk_gb=-1.0))


def instance(**fields) -> vast_replies.Instance:
    return vast_replies.Instance(
        **{
            "id": 7, "label": "shoestring/a", "actual_status": "running", "intended_status": "running",
            "cur_state": "running", "is_bid": True, "dph_total": 0.25, "storage_total_cost": 0.05, "start_date": 100.0,
            "machine_id": 12, "gpu_name": "RTX 4090", "num_gpus": 1,
        }
        | fields
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "running"),
        ({"actual_status": "unknown"}, "running"),
        ({"actual_status": None}, "starting"),
        ({"actual_status": "loading"}, "starting"),
        ({"actual_status": "created", "cur_state": "stopped"}, "starting"),
        ({"actual_status": "rebooting"}, "starting"),
        ({"actual_status": "restarting"}, "starting"),
        ({"intended_status": "stopped"}, "lost"),
        ({"cur_state": "stopped"}, "lost"),
        *[({"actual_status": s}, "lost") for s in ("stopped", "frozen", "exited", "offline")],
    ],
)
def test_states(fields, state):
    assert vast._state(instance(**fields)) == state


def test_times():
    now = time.time()
    assert vast._times(instance(), None) == (100.0, 100.0)
    assert vast._times(instance(actual_status="loading"), None) == (100.0, None)
    created, started = vast._times(instance(uptime_mins=10.0), None)
    assert created == 100.0 and started == pytest.approx(now - 600, abs=5)
    assert vast._times(instance(uptime_mins=10.2), (100.0, started)) == (100.0, started)  # 12 s late: the same start
    assert vast._times(instance(uptime_mins=1.0), (100.0, started))[1] == pytest.approx(now - 60, abs=5)  # restarted
    (created, started) = vast._times(instance(start_date=None, actual_status=None), None)
    assert created == pytest.approx(now, abs=5) and started is None
    assert vast._times(instance(start_date=None, actual_status=None), (created, None)) == (created, None)


def test_frozen_is_charged_in_full(tmp_path, monkeypatch, sim, market):
    """Its container is paused, and "GPU charges apply": docs.vast.ai/cli/reference/show-instance."""
    assert not vast._rental(instance(actual_status="stopped"), 100.0, None).charged
    frozen = vast._rental(
        instance(actual_status="frozen"), *vast._times(instance(actual_status="frozen"), (100.0, 160.0))
    )
    assert (frozen.state, frozen.started, frozen.charged) == ("lost", 160.0, True)
    again = instance(actual_status="restarting")
    assert vast._times(again, (100.0, 160.0)) == (100.0, 160.0) and vast._times(again, None) == (100.0, None)
    monkeypatch.setenv("SHOESTRING_STATE", str(tmp_path))
    ledger, offer = Ledger("test"), market.offers(Want(gpus=("RTX 3090",)))[0]
    id = market.create(offer, order(offer.usd_per_hour))
    sim.wait(lambda s: s["rentals"][0]["state"] == "running")
    ledger.observe("vast", market.list(), time.time())
    sim.control("freeze", id=id)
    ledger.observe("vast", market.list(), time.time())
    assert ledger.rate() == pytest.approx(offer.usd_per_hour + offer.disk_usd_per_hour * 30 / 20)
    bill = {r["id"]: r["usd"] for r in sim.bill()["rentals"]}
    assert ledger.spent(time.time()) == pytest.approx(bill[id], abs=offer.usd_per_hour / 3600)


def test_onstart_lets_the_key_in_once_and_starts(tmp_path):
    script = vast._onstart(order(start="echo started >> ~/log"))
    for _ in range(2):
        subprocess.run(["bash", "-c", script], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True)
    assert (tmp_path / ".ssh/authorized_keys").read_text() == f"{PUBLIC_KEY}\n"
    assert (tmp_path / ".ssh/authorized_keys").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "log").read_text() == "started\nstarted\n"

    assert (tmp_path / ".no_auto_tmux").exists()


def test_the_real_start_fits(tmp_path):
    """The start commands of a worker and a head, with an RSA key of 4,096 bits; long before they become too large, they are compressed."""
    key = "ssh-rsa " + base64.b64encode(random.Random(0).randbytes(535)).decode() + " me@here"
    for start in (watchdog.start(600), watchdog.start(600, ("10.0.0.1", 6379))):
        for script in (
            vast._onstart(order(start=start, public_key=key)),
            vast._onstart(order(start=start + "#" * 2000)),
        ):
            assert len(script) <= 4048
            subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert len(packed(order(start=start, public_key=key))) < 3300
    with pytest.raises(Refused, match=r"the compressed start script has \d+ characters; Vast allows 4048"):
        vast._onstart(order(start=random.Random(0).randbytes(4000).hex()))


def packed(order) -> str:
    return vast._onstart(replace(order, start=order.start + "\n" * 4048))


def test_a_long_start_script_is_packed():
    start = "\n".join(f"echo {i}" for i in range(900))
    script = vast._onstart(order(start=start))
    assert len(script) <= vast.LONGEST_ONSTART
    packed = re.fullmatch(r"echo (\S+) \| base64 -d \| gunzip \| bash\n", script)[1]
    assert gzip.decompress(base64.b64decode(packed)).decode().endswith(f"{start}\n")
