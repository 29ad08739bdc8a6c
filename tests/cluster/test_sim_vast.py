"""The simulated Vast: as strict as the real API, and billed to the second."""

import pytest

from tests.cluster.apis import Both


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, "image"),
        ({"image": "x", "disc": 20}, "disc"),
        ({"image": "x", "disk": "20"}, "disk"),
        ({"image": "x", "price": 0}, "price"),
        ({"image": "x", "label": "l" * 128}, "label"),
        ({"image": "x", "onstart": "#" * 4049}, "onstart"),
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
    (*bid, odd) = both.vast.post("/api/v0/bundles/", json=query | {"type": "bid"}).json()["offers"]
    (*listed, _) = both.vast.post("/api/v0/bundles/", json=query).json()["offers"]
    assert odd["min_bid"] is None and odd["id"] not in both.world.machines  # no client can parse it
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
    stranger, *listed = sorted(i["id"] for i in first["instances"] + rest["instances"])
    assert listed == sorted(map(int, ids)) and stranger == 1
    assert first["total_instances"] == 4 and rest["next_token"] is None
    assert both.vast.get("/api/v1/instances/", params={"limit": 26}).status_code == 400
    assert both.vast.put(f"/api/v0/instances/{ids[0]}/", json={"label": "new"}).json() == {"success": True}
    assert both.show(ids[0])["label"] == "new"
    assert both.vast.delete(f"/api/v0/instances/{ids[0]}/").status_code == 200
    assert both.vast.delete(f"/api/v0/instances/{ids[0]}/").status_code == 404


def test_only_the_right_key_opens(both):
    ident, other = both.rent(100000), both.rent(100001)
    both.vast.headers["Authorization"] = "Bearer wrong"
    refused = both.vast.delete(f"/api/v0/instances/{ident}/")
    # Must not be taken for a destroyed rental.
    assert refused.status_code == 404 and refused.json()["error"] == "auth_error"
    both.vast.headers["Authorization"] = f"Bearer {both.world.rentals[ident].key}"
    assert both.vast.get("/api/v1/instances/").status_code == 403
    assert both.vast.put(f"/api/v0/instances/{ident}/", json={"label": "x"}).status_code == 403
    assert both.vast.delete(f"/api/v0/instances/{other}/").status_code == 403
    assert both.vast.delete(f"/api/v0/instances/{ident}/").status_code == 200


def test_a_machine_just_taken_and_a_losing_bid(both):
    """Refused with cancel_unavail; without it, a stopped instance whose disk is billed, as Vast does for bids."""
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


def test_vast_bills_the_bid_while_it_runs_and_the_disk_while_it_exists(both, clock):
    ident = both.rent(100000, price=0.36, disk=73)
    clock(10)  # loading: only the disk is billed
    both.tick()
    assert both.show(ident)["actual_status"] == "running"
    clock(1000)
    assert both.vast.put(f"/api/v0/instances/bid_price/{ident}/", json={"client_id": "me", "price": 0.72}).is_success
    clock(500)
    both.control("outbid", id=ident)
    clock(3600)  # stopped: only the disk is billed
    shown = both.show(ident)
    assert (shown["actual_status"], shown["cur_state"]) == ("stopped", "stopped")
    both.control("release", machine=100000)
    both.tick()  # the bid wins again, and it restarts without a request
    assert both.show(ident)["actual_status"] == "running"
    clock(100)
    both.vast.delete(f"/api/v0/instances/{ident}/")
    clock(3600)
    (row,) = both.vast.get("/_sim/bill").json()["rentals"]
    assert row["compute_usd"] == pytest.approx((1000 * 0.36 + 500 * 0.72 + 100 * 0.72) / 3600, abs=1e-12)
    disk = both.world.machines[100000].disk_usd_per_gb_month * 73 / 730
    assert row["disk_usd"] == pytest.approx((10 + 1000 + 500 + 3600 + 100) * disk / 3600, abs=1e-12)
    assert row["started"] - row["created"] == 10 and row["ended"] - row["created"] == 5210
