"""Faults in the simulated markets, on request and at random."""

import asyncio

import pytest

from cluster.sim import catalogue
from cluster.sim.__main__ import make_apps
from cluster.sim.box import NoBox
from cluster.sim.world import World


@pytest.mark.parametrize("fault", ["429", "429bare", "429wait", "500", "html", "410html", "404json", "json", "shape"])
def test_an_endpoint_fails_as_often_as_asked_and_no_longer(both, fault):
    assert both.control("api", market="runpod", endpoint="GET /v2/pods", fault=fault, count=2).is_success
    answers = [both.runpod.get("/v2/pods") for _ in range(3)]
    assert [p["id"] for p in answers[2].json()["pods"]] == ["zz"]  # a stranger's
    status = 502 if fault == "html" else int(fault[:3]) if fault[0].isdigit() else 0
    for answer in answers[:2]:
        if status:
            assert answer.status_code == status and ("Retry-After" in answer.headers) == (fault in ("429", "429wait"))
            assert answer.text.startswith("<!DOCTYPE html>") == fault.endswith("html")
        else:
            assert answer.text != answers[2].text and answer.status_code == 200
    assert both.world.calls["GET /v2/pods 200"] == (1 if status else 3)


def test_an_endpoint_is_retired_until_it_is_back(both):
    retired = {"market": "runpod", "endpoint": "GET /v2/pods"}
    assert both.control("retire", **retired, **{"as": "410json"}).is_success
    assert {both.runpod.get("/v2/pods").status_code for _ in range(3)} == {410}
    assert both.control("retire", **retired, **{"as": None}).is_success
    assert both.runpod.get("/v2/pods").status_code == 200


def test_frozen_and_restarting_are_billed_and_answer_nobody(both, clock):
    ids = [both.rent(100000), both.rent(100001)]
    both.tick()
    clock(100)
    assert both.control("freeze", id=ids[0]).is_success and both.control("restart", id=ids[1]).is_success
    assert [both.show(i)["actual_status"] for i in ids] == ["frozen", "restarting"]
    clock(3600)
    for row in both.vast.get("/_sim/bill").json()["rentals"]:
        price = both.world.rentals[row["id"]].order.usd_per_hour
        assert row["compute_usd"] == pytest.approx(price * 3700 / 3600)


def test_a_pod_without_a_public_address(both):
    both.control("next", market="runpod", fault="noip")
    pod = both.runpod.post(
        "/v2/pods", json={"name": "t", "image": "x", "gpu": {"id": "NVIDIA L4"}, "ports": ["22/tcp"]}
    ).json()
    both.tick()
    pod = both.runpod.get(f"/v2/pods/{pod['id']}").json()
    assert pod["status"] == "RUNNING" and pod["ssh"]["direct"] is None and pod["runtime"]["ports"] == []


def test_the_cheapest_of_the_realistic_world_are_useless():
    good, bad = catalogue.machines(0), catalogue.bad_machines(0)
    assert {m.gpu for m in bad} <= {m.gpu for m in good} and not {m.id for m in bad} & {m.id for m in good}
    for m in bad:
        assert m.usd_per_hour < min(g.usd_per_hour / g.count for g in good if (g.market, g.gpu) == (m.market, m.gpu))
        assert m.cuda == 12.2 or m.down_mbps < 200 or not m.verified or not m.public_ip


def test_an_order_is_carried_out_though_its_answer_is_lost(both):
    """This fault leaves rentals that the client doesn't know of."""
    both.control("api", market="vast", endpoint="PUT /api/v0/asks/{id}/", fault="lost")
    order = {"image": "x", "label": "shoestring/t", "cancel_unavail": True}
    assert both.vast.put("/api/v0/asks/100000/", json=order).status_code == 502
    assert [i["label"] for i in both.vast.get("/api/v1/instances/").json()["instances"]] == ["shoestring/t", None]


def test_boots_go_wrong_as_asked(both):
    for fault in ("ok", "stuck", "noboot"):
        both.control("next", market="vast", fault=fault)
    ids = [both.rent(m) for m in (100000, 100001, 100002)]
    both.tick()
    assert [both.show(i)["actual_status"] for i in ids] == ["running", "loading", "exited"]
    both.vast.delete(f"/api/v0/instances/{ids[1]}/")  # also while it hangs
    both.control("vanish", id=ids[0])
    assert both.vast.get("/api/v1/instances/").json()["total_instances"] == 2
    assert {r["id"]: r["ended"] is None for r in both.vast.get("/_sim/bill").json()["rentals"]}[ids[0]] is False
    both.control("offline", id=ids[2])
    assert [r["dark"] for r in both.vast.get("/_sim/state").json()["rentals"]] == [True]


@pytest.mark.parametrize(
    ("name", "body"),
    [("outbid", {"id": "7"}), ("api", {"market": "vast", "endpoint": "GET /x", "fault": "500"}), ("price", {"min_bid": 1}),
     ("next", {"market": "vast", "fault": "lazy"}), ("retire", {"market": "vast", "endpoint": "GET /x"}), ("freeze", {"id": "7"}), ("take", {"machine": 3}), ("dark", {})],
)  # fmt: skip
def test_a_wrong_control_is_refused(both, name, body):
    assert both.control(name, **body).status_code == 400


def test_random_faults_repeat_with_the_seed():
    """The same seed gives the same faults in the same order."""

    async def faults(seed: int) -> list[str]:
        made = World(catalogue.machines(seed), NoBox, 0.0, seed, 1.0, False)
        _, controls = make_apps(made, 60.0, seed)
        for _ in range(40):
            await controls._fault()
        return [f"{f['what']} {f.get('machine')} {f.get('endpoint')}" for f in controls.done]

    assert asyncio.run(faults(1)) == asyncio.run(faults(1)) != asyncio.run(faults(2))
