"""What goes wrong in the simulated markets, as asked and at random."""

import asyncio

import pytest

from cluster.sim import catalogue
from cluster.sim.__main__ import make_apps
from cluster.sim.ports import NoBox
from cluster.sim.world import World


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
