"""Unexpected rows from the markets: a stranger's is skipped and counted, one of ours is listed and can be destroyed."""

import json
import time

import httpx
import pytest

from cluster.market.base import MarketError, Offer, Order, Want
from cluster.market.runpod import RunPod
from cluster.market.vast import Vast
from cluster.money.ledger import Ledger

ASK = {
    "id": 7, "machine_id": 70, "gpu_name": "RTX 4090", "num_gpus": 1, "gpu_ram": 24564, "min_bid": 0.2, "dph_total": 0.4,
    "storage_cost": 0.2, "reliability": 0.99,
}  # fmt: skip
INSTANCE = {
    "id": 5, "label": "shoestring/t;k=w", "actual_status": "running", "intended_status": "running", "is_bid": True,
    "dph_total": 0.3, "start_date": 1000.0, "machine_id": 50, "gpu_name": "RTX 4090", "num_gpus": 1, "storage_total_cost": 0.02,
}  # fmt: skip
POD = {
    "id": "p5", "name": "shoestring/t;k=w", "status": "RUNNING", "cost": 0.3, "disk": 20, "env": {}, "ssh": {"direct": None},
    "createdAt": "2026-11-01T00:00:00Z", "startedAt": "2026-11-01T00:01:00Z", "globalNetworking": {"enabled": False},
}  # fmt: skip
GPU = {
    "id": "NVIDIA GeForce RTX 4090", "name": "RTX 4090", "memory": 24, "secure": True, "community": False, "availability": "HIGH",
    "price": {"secure": 0.6, "community": 0.4}, "maxCount": {"secure": 8, "community": 8},
}  # fmt: skip


def answering(market, body: dict):
    """Makes `market` answer each call with `body`; .calls: [(method, path)]."""
    calls = []

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append((request.method, request.url.path))
        return httpx.Response(200, text=json.dumps(body))

    market.client.http = httpx.Client(base_url="http://market", transport=httpx.MockTransport(answer))
    market.calls = calls
    return market


@pytest.mark.parametrize("field", ["reliability", "min_bid", "gpu_ram", "num_gpus", "storage_cost"])
@pytest.mark.parametrize("odd", [None, "n/a", {}, "absent"])
def test_a_strangers_odd_offer_is_left_out_and_counted(field, odd, caplog):
    row = ASK | {"id": hash((field, str(odd))), field: odd}
    if odd == "absent":
        del row[field]
    found = answering(Vast("k", pace=1000), {"offers": [row, ASK]}).offers(Want(count=1))
    assert [o.id for o in found] == ["7"]
    assert (
        f"vast, offers: 1 of 2 rows left out, since they can't be read. The first is row {row['id']}: {field}"
        in caplog.text
    )


def test_an_odd_kind_of_gpu(caplog):
    market = answering(RunPod("k"), {"gpus": [GPU | {"id": "odd", "price": None}, GPU]})
    assert [o.id for o in market.offers(Want(count=1, spot=False))] == ["SECURE/NVIDIA GeForce RTX 4090/"]
    assert "runpod, offers: 1 of 2 rows left out" in caplog.text


def test_where_no_row_can_be_read_the_market_is_not_empty():
    with pytest.raises(MarketError, match=r"offers.*none of 2 rows can be read; the first, row 7: min_bid"):
        answering(Vast("k", pace=1000), {"offers": [ASK | {"min_bid": None}] * 2}).offers(Want(count=1))
    assert answering(Vast("k", pace=1000), {"offers": []}).offers(Want(count=1)) == []


@pytest.mark.parametrize("odd", [None, "strange", {"a": 1}, [1], -1, float("inf")])
@pytest.mark.parametrize("field", sorted(INSTANCE.keys() - {"id", "label"}))
def test_our_instance_is_seen_and_ended_whatever_its_fields(field, odd):
    strangers = {"id": None, "label": None, "ports": 7}
    market = answering(Vast("k", pace=1000), {"instances": [strangers, INSTANCE | {field: odd}, "what"]})
    [rental] = market.list()
    assert (rental.id, rental.label) == ("5", "shoestring/t;k=w")
    [again] = market.list()
    assert abs(again.created - rental.created) < 1e-6
    market.destroy(rental.id)
    assert market.calls[-1] == ("DELETE", "/api/v0/instances/5/")


@pytest.mark.parametrize("odd", [None, "HIBERNATING", "0001-01-01T00:00:00", {"a": 1}, [1], -1, float("nan")])
@pytest.mark.parametrize("field", sorted(POD.keys() - {"id", "name"}))
def test_our_pod_is_seen_and_ended_whatever_its_fields(field, odd):
    market = answering(RunPod("k"), {"pods": [{"id": None, "name": None}, POD | {field: odd}]})
    [rental] = market.list()
    assert (rental.id, rental.label) == ("p5", "shoestring/t;k=w") and market.list() == [rental]
    market.destroy(rental.id)
    assert market.calls[-1] == ("DELETE", "/v2/pods/p5")


@pytest.mark.parametrize(
    "listed", [None, {"5": {}}, "x", [{"id": 5}], [{"id": 5}, "x"], [{"label": "shoestring/t", "name": "shoestring/t"}]]
)
def test_a_listing_that_has_changed_is_no_empty_one(listed):
    """Nor is one in which our rentals, or how to destroy them, can't be identified: a skipped row would count as gone."""
    for market, field in ((Vast("k", pace=1000), "instances"), (RunPod("k"), "pods")):
        with pytest.raises(MarketError):
            answering(market, {field: listed}).list()
    for field in ("offers", "gpus"):
        with pytest.raises(MarketError, match="must be a list"):
            answering(Vast("k", pace=1000) if field == "offers" else RunPod("k"), {field: None}).offers(
                Want(count=1, spot=field == "offers")
            )


def test_an_unknown_status_is_no_loss():
    """Ray's own health check detects whether the node is alive; treating it as lost would destroy a working machine."""
    [pod] = answering(RunPod("k"), {"pods": [POD | {"status": "HIBERNATING"}]}).list()
    assert (pod.state, pod.why) == ("running", "HIBERNATING")
    [instance] = answering(Vast("k", pace=1000), {"instances": [INSTANCE | {"actual_status": "dreaming"}]}).list()
    assert (instance.state, instance.why) == ("running", "dreaming")


def test_a_price_that_the_market_does_not_say_is_the_one_it_was_rented_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SHOESTRING_STATE", str(tmp_path))
    ledger, now = Ledger("t"), time.time()
    offer = Offer("vast", "7", "70", "RTX 4090", 1, 24.0, True, 0.2, 0.02)
    market = answering(Vast("k", pace=1000), {"new_contract": 5})
    ledger.rent(market, offer, Order("shoestring/t;k=w", "image", 20, 0.5, "ssh-ed25519 AAAA me"))
    row = INSTANCE | {"dph_total": None, "start_date": now - 7200, "uptime_mins": 120}
    ledger.observe("vast", answering(Vast("k", pace=1000), {"instances": [row]}).list(), now + 1)
    assert ledger.rate() == pytest.approx(0.52)
    unknown = INSTANCE | {"id": 6, "dph_total": None}
    ledger.observe("vast", answering(Vast("k", pace=1000), {"instances": [row, unknown]}).list(), now + 2)
    assert "vast reports no price for 6, and the ledger has none: it counts as free" in caplog.text
