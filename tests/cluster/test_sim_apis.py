"""The simulated APIs, in this process and without boxes: strict as the real ones, and billed to the second."""

import asyncio
import os
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from cluster.sim import catalogue, world
from cluster.sim.__main__ import make_apps
from cluster.sim.ports import NoBox
from cluster.sim.world import World

SPEC = os.environ.get("RUNPOD_SPEC")
"""RunPod's OpenAPI description, where there is one; bodies and replies are then checked against it too."""
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBmQ me"


class Held(World):
    """Boots when it is told to."""

    def __init__(self, *args):
        super().__init__(*args)
        self.go = asyncio.Event()

    async def _boot(self, rental, fault):
        await self.go.wait()
        await super()._boot(rental, fault)


class Both:
    """Clients of both APIs of one world, in which nothing boots between ticks."""

    def __init__(self, pace: float = 1e6, flat: bool = False):
        self.world = Held(catalogue.machines(0), NoBox, 0.0, 0, pace, flat)
        apps, self.controls = make_apps(self.world, 0.0, 0, Path(SPEC) if SPEC else None)
        self.vast, self.runpod = (TestClient(apps[m]) for m in ("vast", "runpod"))
        for market, client in (("vast", self.vast), ("runpod", self.runpod)):
            client.headers["Authorization"] = f"Bearer {self.world.keys[market]}"

    def control(self, name: str, **body):
        return self.vast.post(f"/_sim/{name}", json=body)

    def tick(self) -> None:
        """The world's clock beats, and what is booting boots."""

        async def beat() -> None:
            await self.world.tick()
            self.world.go.set()
            while any(r.booting and r.why != "pulling image" for r in self.world.alive()):
                await asyncio.sleep(0.001)
            self.world.go.clear()

        self.vast.portal.call(beat)

    def rent(self, machine: int = 100_000, **more) -> str:
        order = {"image": "x", "disk": 20, "label": "shoestring/t", "cancel_unavail": True} | more
        return str(self.vast.put(f"/api/v0/asks/{machine}/", json=order).json()["new_contract"])

    def show(self, ident: str) -> dict:
        return self.vast.get(f"/api/v0/instances/{ident}/").json()["instances"]


@pytest.fixture
def both():
    made = Both()
    with made.vast:  # one event loop, in which rentals boot
        made.runpod.portal = made.vast.portal
        yield made


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds) moves the world's time, which otherwise stands still."""
    now = [1_800_000_000.0]
    monkeypatch.setattr(world.time, "time", lambda: now[0])

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


# ---- Vast


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, "image"),
        ({"image": "x", "disc": 20}, "disc"),
        ({"image": "x", "disk": "20"}, "disk"),
        ({"image": "x", "price": 0}, "price"),
        ({"image": "x", "label": "l" * 257}, "label"),
        ({"image": "x", "env": {"A": 1}}, "env"),
        ({"image": "x", "env": {"-p 22": "1"}}, "-p 22"),
        ({"image": "x", "runtype": "shh"}, "runtype"),
        ({"image": "x", "disk": 5000}, "disk"),
        ([], "body"),
    ],
)
def test_vast_refuses_a_malformed_order_by_name(both, body, names):
    answer = both.vast.put("/api/v0/asks/100000/", json=body)
    assert answer.status_code == 400 and names in answer.json()["msg"]
    assert not both.world.rentals


@pytest.mark.parametrize(
    "query",
    [{"gpu": {"eq": "A"}}, {"gpu_name": "A"}, {"gpu_name": {"is": "A"}}, {"num_gpus": {"gte": "1"}}, {"limit": 0},
     {"type": "spot"}, {"order": [["price", "asc"]]}, {"order": "dph_total"}],
)  # fmt: skip
def test_vast_refuses_a_malformed_search(both, query):
    assert both.vast.post("/api/v0/bundles/", json=query).status_code == 400


def test_vast_offers_are_filtered_priced_and_ordered(both):
    query = {"gpu_name": {"in": ["RTX 4090", "RTX 3090"]}, "num_gpus": {"eq": 1}, "cuda_max_good": {"gte": 12.8}}
    query |= {"allocated_storage": 100, "order": [["dph_total", "asc"]]}
    bid = both.vast.post("/api/v0/bundles/", json=query | {"type": "bid"}).json()["offers"]
    listed = both.vast.post("/api/v0/bundles/", json=query).json()["offers"]
    assert {o["id"] for o in bid} == {o["id"] for o in listed} == {100000, 100003, 100004, 100005}
    totals = [o["dph_total"] for o in listed]
    assert totals == sorted(totals)
    for spot, on_demand in ((o, next(x for x in listed if x["id"] == o["id"])) for o in bid):
        machine = both.world.machines[spot["id"]]
        disk = machine.disk_usd_per_gb_month * 100 / 730
        assert spot["dph_total"] == pytest.approx(machine.min_bid + disk, rel=1e-12)
        assert on_demand["dph_total"] == pytest.approx(machine.usd_per_hour + disk, rel=1e-12)


def test_an_instance_lives_and_is_listed_in_pages(both):
    ids = [both.rent(m, onstart="true", env={"A": "b", "-p 8000:8000": "1"}) for m in (100000, 100001, 100002)]
    assert both.show(ids[0])["actual_status"] is None
    both.tick()
    shown = both.show(ids[0])
    assert shown["actual_status"] == shown["intended_status"] == shown["cur_state"] == "running"
    assert set(shown["ports"]) == {"22/tcp", "8000/tcp"} and shown["extra_env"] == [["A", "b"]]
    first = both.vast.get("/api/v1/instances/", params={"limit": 2}).json()
    rest = both.vast.get("/api/v1/instances/", params={"limit": 2, "after_token": first["next_token"]}).json()
    assert sorted(i["id"] for i in first["instances"] + rest["instances"]) == sorted(map(int, ids))
    assert first["total_instances"] == 3 and rest["next_token"] is None
    assert both.vast.get("/api/v1/instances/", params={"limit": 26}).status_code == 400
    assert both.vast.put(f"/api/v0/instances/{ids[0]}/", json={"label": "new"}).json() == {"success": True}
    assert both.show(ids[0])["label"] == "new"
    assert both.vast.delete(f"/api/v0/instances/{ids[0]}/").status_code == 200
    assert both.vast.delete(f"/api/v0/instances/{ids[0]}/").status_code == 404


def test_only_the_right_key_opens(both):
    ident, other = both.rent(100000), both.rent(100001)
    both.vast.headers["Authorization"] = "Bearer wrong"
    assert both.vast.get("/api/v1/instances/").status_code == 401
    both.vast.headers["Authorization"] = f"Bearer {both.world.rentals[ident].key}"
    assert both.vast.get("/api/v1/instances/").status_code == 403
    assert both.vast.put(f"/api/v0/instances/{ident}/", json={"label": "x"}).status_code == 403
    assert both.vast.delete(f"/api/v0/instances/{other}/").status_code == 403
    assert both.vast.delete(f"/api/v0/instances/{ident}/").status_code == 200


def test_a_machine_just_taken_and_a_losing_bid(both):
    """Refused with cancel_unavail; without, a stopped instance whose disk is billed, as Vast does for bids."""
    low = {"image": "x", "price": 0.001}
    for body in (low | {"cancel_unavail": True}, {"image": "x"}):
        both.control("next", market="vast", fault="taken")
        answer = both.vast.put("/api/v0/asks/100000/", json=body)
        assert answer.status_code == 404 and "no_such_ask" in answer.json()["msg"]
    both.control("release", machine=100000)
    ident = str(both.vast.put("/api/v0/asks/100000/", json=low).json()["new_contract"])
    both.tick()
    shown = both.show(ident)
    assert (shown["actual_status"], shown["intended_status"], shown["cur_state"]) == ("stopped", "running", "stopped")
    assert both.world.rentals[ident].charges[0].what == "disk" and both.world.rentals[ident].charges[0].end is None


def test_rate_limits_are_the_documented_ones():
    slow = Both(pace=1.0)
    with slow.vast:
        for n in range(11):
            answer = slow.vast.post("/api/v0/bundles/", json={})
            assert answer.status_code == (200 if n < 10 else 429)
        assert answer.text.startswith("API requests too frequent") and "Retry-After" not in answer.headers
        assert [slow.vast.get("/api/v1/instances/").status_code for _ in range(2)] == [200, 429]
    with slow.runpod:
        answers = [slow.runpod.get("/v2/pods") for _ in range(101)]
        assert answers[99].status_code == 200 and answers[100].status_code == 429
        assert 1 <= int(answers[100].headers["Retry-After"]) <= 60


# ---- the bill


def test_vast_bills_the_bid_while_it_runs_and_the_disk_while_it_exists(both, clock):
    ident = both.rent(100000, price=0.36, disk=73)
    clock(10)  # loading: only the disk
    both.tick()
    assert both.show(ident)["actual_status"] == "running"
    clock(1000)
    assert both.vast.put(f"/api/v0/instances/bid_price/{ident}/", json={"client_id": "me", "price": 0.72}).is_success
    clock(500)
    both.control("outbid", id=ident)
    clock(3600)  # stopped: only the disk
    shown = both.show(ident)
    assert (shown["actual_status"], shown["cur_state"]) == ("stopped", "stopped")
    both.control("release", machine=100000)
    both.tick()  # the bid wins again, and it runs without anybody asking
    assert both.show(ident)["actual_status"] == "running"
    clock(100)
    both.vast.delete(f"/api/v0/instances/{ident}/")
    clock(3600)
    (row,) = both.vast.get("/_sim/bill").json()["rentals"]
    assert row["compute_usd"] == pytest.approx((1000 * 0.36 + 500 * 0.72 + 100 * 0.72) / 3600, abs=1e-12)
    disk = both.world.machines[100000].disk_usd_per_gb_month * 73 / 730
    assert row["disk_usd"] == pytest.approx((10 + 1000 + 500 + 3600 + 100) * disk / 3600, abs=1e-12)
    assert row["started"] - row["created"] == 10 and row["ended"] - row["created"] == 5210


def test_runpod_bills_while_it_runs_and_its_volume_twice_while_it_does_not(both, clock):
    body = {"name": "shoestring/t", "image": "x", "gpu": {"id": "NVIDIA L4"}, "disk": 73}
    pod = both.runpod.post("/v2/pods", json=body | {"mounts": {"persistent": {"size": 146, "path": "/w"}}}).json()
    assert pod["status"] == "PROVISIONING" and pod["cost"] == 0
    both.tick()
    assert both.runpod.get(f"/v2/pods/{pod['id']}").json()["cost"] == 0.39
    clock(7200)
    both.control("exit", id=pod["id"])
    clock(3600)
    assert both.runpod.get(f"/v2/pods/{pod['id']}").json()["status"] == "EXITED"
    assert both.runpod.delete(f"/v2/pods/{pod['id']}").status_code == 204
    (row,) = both.vast.get("/_sim/bill").json()["rentals"]
    assert row["compute_usd"] == pytest.approx(2 * 0.39, abs=1e-12)
    assert row["disk_usd"] == pytest.approx(2 * 0.01 + 2 * 0.02 + 0.04, abs=1e-12)


# ---- RunPod


@pytest.mark.parametrize(
    ("body", "status", "names"),
    [
        ({"image": "x", "gpu": {"id": "NVIDIA L4"}}, 422, "name"),
        ({"name": "t", "gpu": {"id": "NVIDIA L4"}}, 422, "image"),
        ({"name": "t", "image": "x", "gpu": {"id": "NVIDIA L4", "gpus": 1}}, 422, "gpus"),
        ({"name": "t", "image": "x", "gpu": {"id": "NVIDIA L4"}, "bidPerGpu": 1}, 422, "bidPerGpu"),
        ({"name": "t", "image": "x", "gpu": {"id": "NVIDIA L4"}, "ports": ["22"]}, 422, "22"),
        ({"name": "t", "image": "x", "gpu": {"id": "NVIDIA L4"}, "disk": 20.5}, 422, "disk"),
        ({"name": "t", "image": "x"}, 400, "gpu or cpu"),
        ({"name": "t", "image": "x", "gpu": {"id": "L4"}}, 400, "gpu.id"),
        ({"name": "t", "image": "x", "gpu": {"id": "NVIDIA L4", "count": 2}}, 400, "no longer any instances"),
        ({"name": "t", "image": "x", "gpu": {"id": "NVIDIA L4"}, "globalNetworking": True}, 400, "globalNetworking"),
    ],
)
def test_runpod_refuses_by_name(both, body, status, names):
    answer = both.runpod.post("/v2/pods", json=body)
    assert answer.status_code == answer.json()["status"] == status and names in answer.json()["detail"]
    assert not both.world.rentals


def test_a_pod_lives(both):
    both.runpod.put("/v2/account/ssh-keys", json={"keys": [KEY]})
    body = {"name": "t", "image": "x", "cpu": {"id": "cpu3c", "vcpuCount": 4}, "ports": ["22/tcp", "80/http"]}
    pod = both.runpod.post("/v2/pods", json=body | {"startSsh": True, "env": {"A": "b"}}).json()
    both.tick()
    pod = both.runpod.get(f"/v2/pods/{pod['id']}").json()
    assert pod["status"] == "RUNNING" and pod["cpu"] == {"id": "cpu3c", "vcpuCount": 4, "memory": 8}
    assert pod["cost"] == pytest.approx(0.12) and pod["env"] == {"A": "b", "PUBLIC_KEY": KEY}
    assert [p["private"] for p in pod["runtime"]["ports"]] == [22]
    assert pod["ssh"]["direct"]["port"] == pod["runtime"]["ports"][0]["public"]
    action = f"/v2/pods/{pod['id']}/action"
    assert both.runpod.post(action, json={"action": "start"}).status_code == 409
    assert both.runpod.post(action, json={"action": "stop"}).json()["status"] == "EXITED"
    assert both.runpod.post(action, json={"action": "start"}).json()["status"] == "PROVISIONING"
    assert both.runpod.patch(f"/v2/pods/{pod['id']}", json={"name": "u"}).json()["name"] == "u"
    assert both.runpod.post(action, json={"action": "terminate"}).status_code == 204
    assert both.runpod.get("/v2/pods").json() == {"pods": []}


def test_the_catalog_tells_what_is_free(both):
    def level():
        asked = {"include": "AVAILABILITY", "product": "POD"}
        gpus = both.runpod.get("/v2/catalog/gpus", params=asked).json()["gpus"]
        return next(g["availability"] for g in gpus if g["id"] == "NVIDIA L4")

    assert level() == "LOW"
    assert both.runpod.post("/v2/pods", json={"name": "t", "image": "x", "gpu": {"id": "NVIDIA L4"}}).is_success
    assert level() == "NONE"
    somewhere = {"include": "AVAILABILITY", "product": "POD", "count": 1, "cloud": "COMMUNITY", "countryCodes": "US,CA"}
    gpus = both.runpod.get("/v2/catalog/gpus", params=somewhere).json()["gpus"]
    assert {c["id"][:2] for g in gpus for c in g["dataCenters"]} <= {"US", "CA"}
    assert both.runpod.get("/v2/catalog/gpus", params={"include": "AVAILABILITY"}).status_code == 400
    assert "availability" not in both.runpod.get("/v2/catalog/gpus").json()["gpus"][0]


RENT = "mutation R($input: PodRentInterruptableInput!) { podRentInterruptable(input: $input) { id costPerHr podType } }"


def test_spot_is_rented_by_graphql_outbid_and_ended_by_the_market(both, clock):
    def ask(query, **variables):
        return both.runpod.post("/graphql", json={"query": query, "variables": variables}).json()

    gpu = "NVIDIA GeForce RTX 4090"
    least = f'{{gpuTypes(input:{{id:"{gpu}"}}){{lowestPrice(input:{{gpuCount:2}}){{minimumBidPrice}}}}}}'
    price = ask(least)["data"]["gpuTypes"][0]["lowestPrice"]["minimumBidPrice"]
    order = {"gpuTypeId": gpu, "gpuCount": 2, "imageName": "x", "name": "t", "ports": "22/tcp", "startSsh": True}
    assert "no longer any" in ask(RENT, input=order | {"bidPerGpu": price - 0.01})["errors"][0]["message"]
    assert "bidPerGPU" in ask(RENT, input=order | {"bidPerGPU": price})["errors"][0]["message"]
    pod = ask(RENT, input=order | {"bidPerGpu": price, "terminateAfter": "2027-01-15T09:00:00Z"})
    pod = pod["data"]["podRentInterruptable"]
    assert pod["costPerHr"] == pytest.approx(2 * price) and pod["podType"] == "INTERRUPTABLE"
    both.tick()
    assert both.runpod.get(f"/v2/pods/{pod['id']}").json()["status"] == "RUNNING"
    both.control("price", gpu=gpu, min_bid=9.0)
    both.tick()
    assert both.runpod.get(f"/v2/pods/{pod['id']}").json()["status"] == "EXITED"
    clock(3600)  # 2027-01-15 09:00
    both.tick()
    assert both.runpod.get(f"/v2/pods/{pod['id']}").status_code == 404


# ---- faults


@pytest.mark.parametrize("fault", ["429", "500", "json", "shape"])
def test_an_endpoint_fails_as_often_as_asked_and_no_longer(both, fault):
    assert both.control("api", market="runpod", endpoint="GET /v2/pods", fault=fault, count=2).is_success
    answers = [both.runpod.get("/v2/pods") for _ in range(3)]
    assert answers[2].json() == {"pods": []}
    for answer in answers[:2]:
        if fault.isdigit():
            assert answer.status_code == int(fault)
        else:
            assert answer.text != answers[2].text and answer.status_code == 200
    assert both.world.calls["GET /v2/pods 200"] == (1 if fault.isdigit() else 3)


def test_an_order_is_carried_out_though_its_answer_is_lost(both):
    """The fault that leaves rentals nobody knows of."""
    both.control("api", market="vast", endpoint="PUT /api/v0/asks/{id}/", fault="lost")
    order = {"image": "x", "label": "shoestring/t", "cancel_unavail": True}
    assert both.vast.put("/api/v0/asks/100000/", json=order).status_code == 502
    assert [i["label"] for i in both.vast.get("/api/v1/instances/").json()["instances"]] == ["shoestring/t"]


def test_boots_go_wrong_as_asked(both):
    for fault in ("ok", "stuck", "noboot"):
        both.control("next", market="vast", fault=fault)
    ids = [both.rent(m) for m in (100000, 100001, 100002)]
    both.tick()
    assert [both.show(i)["actual_status"] for i in ids] == ["running", "loading", "exited"]
    both.vast.delete(f"/api/v0/instances/{ids[1]}/")  # also while it hangs
    both.control("vanish", id=ids[0])
    assert both.vast.get("/api/v1/instances/").json()["total_instances"] == 1
    assert {r["id"]: r["ended"] is None for r in both.vast.get("/_sim/bill").json()["rentals"]}[ids[0]] is False
    both.control("offline", id=ids[2])
    assert [r["dark"] for r in both.vast.get("/_sim/state").json()["rentals"]] == [True]


@pytest.mark.parametrize(
    ("name", "body"),
    [("outbid", {"id": "7"}), ("api", {"market": "vast", "endpoint": "GET /x", "fault": "500"}), ("price", {"min_bid": 1}),
     ("next", {"market": "vast", "fault": "slow"}), ("take", {"machine": 3}), ("dark", {})],
)  # fmt: skip
def test_a_wrong_control_is_refused(both, name, body):
    assert both.control(name, **body).status_code == 400


def test_random_faults_repeat_with_the_seed():
    """The same seed, the same faults in the same order."""

    async def faults(seed: int) -> list[str]:
        made = World(catalogue.machines(seed), NoBox, 0.0, seed, 1.0, False)
        _, controls = make_apps(made, 60.0, seed)
        for _ in range(40):
            await controls._fault()
        return [f"{f['what']} {f.get('machine')} {f.get('endpoint')}" for f in controls.done]

    assert asyncio.run(faults(1)) == asyncio.run(faults(1)) != asyncio.run(faults(2))
