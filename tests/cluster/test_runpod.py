"""RunPod's client against the simulated market; its requests are also checked against RunPod's own OpenAPI description."""

import json
import re
import shlex
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from cluster.market import http, runpod
from cluster.market.base import MarketError, Order, Refused, Taken, Unsure, Want
from cluster.market.runpod import RunPod
from cluster.market.runpod_replies import Pods
from tests.cluster.conftest import simulator
from tests.conftest import REPO

PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDqi me@here"
OURS = Path(__file__).with_name("runpod_requests.json")
SPEC = next((s for p in REPO.parents if (s := p / "shared/providers/runpod_openapi_v2.json").is_file()), None)


@pytest.fixture(scope="module")
def sim():
    with simulator(boot=0.2, network="flat", **({"runpod_spec": SPEC} if SPEC else {})) as started:
        yield started


@pytest.fixture
def market(sim):
    found = RunPod(sim.env["RUNPOD_API_KEY"], sim.runpod_url)
    yield found
    for r in found.list():
        found.destroy(r.id)
    for m in sim.get("machines"):
        if m["taken"]:
            sim.control("release", machine=m["id"])


def order(bid=None, **options):
    options = {"label": "shoestring/test;k=worker", "image": "img", "disk_gb": 30.0, "public_key": PUBLIC_KEY} | options
    return Order(bid_usd_per_hour=bid, **options)


def of(sim, gpu):
    return [m for m in sim.get("machines") if m["market"] == "runpod" and m["gpu"] == gpu]


def test_offers_on_demand(sim, market):
    offers = market.offers(Want(gpus=("RTX 4090",), spot=False, disk_gb=73.0))
    there = of(sim, "NVIDIA GeForce RTX 4090")
    places = {f"{'SECURE' if m['secure'] else 'COMMUNITY'}/NVIDIA GeForce RTX 4090/{m['region']}" for m in there}
    assert {o.id for o in offers} == {o.machine for o in offers} == places and len(places) == 2
    # Secure first, though it is more expensive.
    assert [o.public_ip for o in offers] == [o.datacenter for o in offers] == [True, False]
    for o in offers:
        same = [m for m in there if m["secure"] == o.id.startswith("SECURE")]
        assert o.usd_per_hour == min(m["usd_per_hour"] / m["count"] for m in same) and o.region == same[0]["region"]
        assert (o.gpu, o.gpu_memory_gb, o.spot) == ("RTX 4090", 24, False)
        assert o.disk_usd_per_hour == pytest.approx(0.01)  # 73 GB at $0.10 a month of 730 hours
    assert market.offers(Want(gpus=("NVIDIA GeForce RTX 4090",), spot=False, disk_gb=73.0)) == offers
    assert all(o.gpu_memory_gb >= 40 for o in market.offers(Want(spot=False, gpu_memory_gb=40)))
    assert market.offers(Want(spot=False, max_usd_per_hour=0.01)) == []


def test_there_is_no_spot(sim, market):
    before = sim.state()["calls"]
    assert not RunPod.has_spot and market.offers(Want(gpus=("RTX 4090",))) == [] and sim.state()["calls"] == before


def test_a_failing_cloud_does_not_hide_the_other(market, caplog):
    """Whatever the vendor changes in one, as it did with spot."""
    every = market.offers(Want(gpus=("RTX 4090",), spot=False))
    answer = market.client.http._transport.handle_request

    def without(cloud):
        def down(request):
            gone = request.url.params.get("cloud") == cloud
            return httpx.Response(410, html="<title>Retired</title>") if gone else answer(request)

        return httpx.MockTransport(down)

    for cloud, other in (("COMMUNITY", "SECURE"), ("SECURE", "COMMUNITY")):
        market.client.http._transport = without(cloud)
        offers = market.offers(Want(gpus=("RTX 4090",), spot=False))
        assert offers == [o for o in every if o.id.startswith(other)] != []
    assert (
        "HTTP 410: a web page, 'Retired'. It seems that runpod has retired this call. The other cloud is used"
        in caplog.text
    )
    with pytest.raises(Refused, match="410"):  # only Secure was requested, and its offers are unknown
        market.offers(Want(gpus=("RTX 4090",), spot=False, datacenter=True))


def test_a_pod_without_a_public_address_can_be_told_from_others(sim, market):
    (secure, community) = market.offers(Want(gpus=("RTX 4090",), spot=False))
    sim.control("next", market="runpod", fault="noip")
    market.create(community, order())
    market.create(secure, order())
    sim.wait(lambda s: [r["state"] for r in s["rentals"]] == ["running"] * 2)
    listed = {r.machine: r for r in market.list()}
    assert listed.keys() == {secure.machine, community.machine}  # the id by which a failure is remembered
    bare = listed[community.machine]
    assert (bare.state, bare.ssh) == ("running", None) and "without a public address for SSH yet (COMMUNITY" in bare.why
    assert listed[secure.machine].ssh and listed[secure.machine].why == "RUNNING"


def test_offers_without_a_gpu(sim, market):
    (two, *_) = market.offers(Want(count=0, spot=False))
    (six, *_) = market.offers(Want(count=0, spot=False, cpus=6))
    assert (two.cpus, six.cpus, two.count) == (2, 8, 0) and six.usd_per_hour == pytest.approx(4 * two.usd_per_hour)
    id = market.create(six, order())
    assert market.list()[0].usd_per_hour in (0.0, pytest.approx(six.usd_per_hour))
    market.destroy(id)


def test_life_on_demand(sim, market):
    (offer, *_) = market.offers(Want(gpus=("RTX 4090",), spot=False))
    before = time.time()
    id = market.create(offer, order(start="true"))
    (first,) = market.list()
    assert (first.id, first.label, first.state, first.spot) == (id, "shoestring/test;k=worker", "starting", False)
    assert first.started is None and first.ssh is None and before - 1 < first.created < time.time()
    sim.wait(lambda s: s["rentals"][0]["state"] == "running")
    (runs,) = market.list()
    assert (
        runs.state == "running"
        and runs.ssh[0] == "127.0.0.1"
        and runs.usd_per_hour == pytest.approx(offer.usd_per_hour)
    )
    assert runs.started == pytest.approx(sim.state()["rentals"][0]["started"], abs=0.01)
    assert runs.disk_usd_per_hour == pytest.approx(0.1 * 30 / 730) and runs.private_ip is None
    market.label(id, "shoestring/test;k=head")
    sim.control("exit", id=id)
    (lost,) = market.list()
    assert (lost.label, lost.state, lost.why, lost.disk_usd_per_hour) == (
        "shoestring/test;k=head",
        "lost",
        "EXITED",
        0.0,
    )
    market.destroy(id)
    market.destroy(id)
    assert market.list() == []


def test_the_hosts_cuda(sim, market):
    # All have this version; one machine will lose it.
    newest = min(m["cuda"] for m in of(sim, "NVIDIA GeForce RTX 4090"))
    (one, *others) = market.offers(Want(gpus=("RTX 4090",), spot=False, min_cuda=newest))
    for m in of(sim, "NVIDIA GeForce RTX 4090"):
        if not m["secure"]:
            sim.control("driver", machine=m["id"], cuda=12.2)
    assert others and [o.id for o in market.offers(Want(gpus=("RTX 4090",), spot=False, min_cuda=newest))] == [one.id]
    id = market.create(one, order())
    machine = next(r["machine"] for r in sim.state()["rentals"] if r["id"] == id)
    assert next(m["cuda"] for m in sim.get("machines") if m["id"] == machine) >= newest
    with pytest.raises(Taken):
        market.create(replace(one, cuda=15.0), order())
    for m in of(sim, "NVIDIA GeForce RTX 4090"):
        sim.control("driver", machine=m["id"], cuda=12.8)


def test_other_peoples_pods_are_not_ours(market):
    (offer, *_) = market.offers(Want(spot=False))
    id = market.create(offer, order(label="my own pod"))
    assert market.list() == []
    market.destroy(id)


def test_what_other_pods_hold_hides_none_of_ours():
    assert Pods.model_validate({"pods": [{"name": "mine", "status": "HIBERNATED"}]}).pods == []
    with pytest.raises(
        ValueError, match="id"
    ):  # a rental that can't be destroyed would count as gone if it were skipped
        Pods.model_validate({"pods": [{"name": "shoestring/c;k=w", "status": "HIBERNATED"}]})


def test_no_capacity_is_taken(sim, market):
    (asked, *_) = market.offers(Want(gpus=("RTX 4090",), spot=False))
    for m in of(sim, "NVIDIA GeForce RTX 4090"):
        sim.control("take", machine=m["id"])
    with pytest.raises(Taken, match=r"runpod, create: HTTP 400: .*no longer any instances"):
        market.create(asked, order())
    assert market.offers(Want(gpus=("RTX 4090",), spot=False)) == []


def test_a_wrong_key_is_refused_without_being_told(sim):
    key = "wrong-key-0123456789"
    with pytest.raises(
        Refused, match=r"the API key is refused \(HTTP 401.*Check RUNPOD_API_KEY, or .*/runpod_api_key"
    ) as caught:
        RunPod(key, sim.runpod_url).offers(Want(spot=False))
    assert key not in str(caught.value)


def test_faults(sim, market, monkeypatch):
    monkeypatch.setattr(http, "sleep", lambda s: time.sleep(min(s, 0.05)))
    for fault in ("502", "429", "429bare", "429wait", "html"):
        sim.control("api", market="runpod", endpoint="GET /v2/pods", fault=fault, count=2)
        assert market.list() == []
    sim.control("api", market="runpod", endpoint="GET /v2/pods", fault="shape")
    with pytest.raises(MarketError, match="runpod, list: the reply's pods is wrong: Field required"):
        market.list()
    (asked, *_) = market.offers(Want(spot=False))
    for fault in ("500", "html", "json", "shape"):
        sim.control("api", market="runpod", endpoint="POST /v2/pods", fault=fault)
        with pytest.raises(Unsure):
            market.create(asked, order())
    for fault in ("404html", "404json", "410html", "410json"):  # certainly nothing was rented
        sim.control("api", market="runpod", endpoint="POST /v2/pods", fault=fault)
        with pytest.raises(Refused):
            market.create(asked, order())


def test_flat_network(sim, market):
    offers = market.offers(Want(spot=False, network="global"))
    assert offers and all(o.id.startswith("SECURE/") and o.network == "global" for o in offers)
    id = market.create(offers[0], order())
    sim.wait(lambda s: s["rentals"][0]["state"] == "running")
    assert market.list()[0].private_ip == "127.0.0.1" and market.list()[0].id == id


@pytest.mark.parametrize("description", [OURS, *([SPEC] if SPEC else [])], ids=lambda path: path.stem)
def test_requests_follow_the_openapi_description(market, description):
    from jsonschema import Draft202012Validator

    spec, sent = json.loads(description.read_text()), []
    market.client.http.event_hooks["request"].append(
        lambda r: sent.append((r.method, r.url.path, dict(r.url.params), json.loads(r.content or b"null")))
    )
    (gpu, *_) = market.offers(Want(spot=False, min_cuda=12.4))
    (cpu, *_) = market.offers(Want(spot=False, count=0))
    for offer in (gpu, cpu):
        id = market.create(offer, order(start="echo", env={"A": "b"}))
        market.label(id, "shoestring/test;k=head")
        market.list()
        market.destroy(id)
    assert {m for m, *_ in sent} == {"GET", "POST", "PATCH", "DELETE"}
    for method, path, params, body in sent:
        path = re.sub(r"/pods/\w+", "/pods/{id}", path)
        described = spec["paths"][path][method.lower()]
        refs = [p["$ref"].rsplit("/", 1)[1] for p in described.get("parameters", []) if "$ref" in p]
        assert params.keys() <= {spec["components"]["parameters"][r]["name"] for r in refs}
        if body is not None:
            schema = described["requestBody"]["content"]["application/json"]["schema"]
            Draft202012Validator(schema | {"components": spec["components"]}).validate(body)


def test_start_runs_beside_the_images_own(tmp_path):
    words = shlex.split(runpod._args(f"echo 'it''s' \"$HOME\" > {tmp_path}/log"))
    assert words[:2] == ["bash", "-c"] and len(words) == 3
    command = words[2].replace("exec sleep infinity", "wait")
    subprocess.run(["bash", "-c", command], env={"HOME": "/h", "PATH": "/usr/bin:/bin"}, check=True, timeout=10)
    assert (tmp_path / "log").read_text() == "its /h\n"
