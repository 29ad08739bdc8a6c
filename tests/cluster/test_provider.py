"""cluster/provider.py over the simulated markets' real HTTP, without boxes: its replies to Ray, and its rentals."""

import time
from dataclasses import replace

import pytest
from ray.autoscaler import tags as ray

from cluster.market import tags
from cluster.market.base import MarketError
from cluster.market.http import TRIES
from cluster.money.ledger import UNANSWERED_S, Ledger
from cluster.node.autoscaler_config import complete
from cluster.node.ending import TRIES as END_TRIES
from tests.cluster.nodes import LADDER, WORKER, cluster, running


def test_a_node_has_its_tags_for_every_process_and_is_gone_when_terminated(provider, sim):
    first = provider()
    first.create_node({"ladder": LADDER}, WORKER, 2)
    assert len(first.non_terminated_nodes({})) == 2  # listed from the start
    ids = running(sim, first)
    second = provider()
    assert sorted(second.non_terminated_nodes({ray.TAG_RAY_NODE_KIND: "worker"})) == sorted(ids)
    assert second.non_terminated_nodes({ray.TAG_RAY_NODE_KIND: "head"}) == []
    for id in ids:
        assert second.node_tags(id).items() >= WORKER.items()
        assert second.is_running(id) and not second.is_terminated(id)
    assert {second.internal_ip(id) for id in ids} == {"127.77.0.2", "127.77.0.3"}
    second.terminate_node(ids[0])
    assert second.is_terminated(ids[0]) and first.non_terminated_nodes({}) == [ids[1]]
    assert first.end() == 1
    assert sim.state()["rentals"] == []


def test_the_heads_tags_are_kept_in_its_label(provider, sim):
    first = provider()
    head = {ray.TAG_RAY_NODE_KIND: "head", ray.TAG_RAY_USER_NODE_TYPE: "head", ray.TAG_RAY_LAUNCH_CONFIG: "h" * 52}
    first.create_node({"ladder": LADDER[2:]}, head, 1)
    [id] = running(sim, first)
    first.set_node_tags(id, {ray.TAG_RAY_NODE_STATUS: ray.STATUS_UP_TO_DATE, ray.TAG_RAY_RUNTIME_CONFIG: "r" * 52})
    assert provider().non_terminated_nodes(head | {ray.TAG_RAY_RUNTIME_CONFIG: "r" * 52, tags.SLOT: "1"}) == [id]


@pytest.mark.parametrize("fault", ["outbid", "offline", "vanish", "exit"])
def test_a_lost_rental_is_gone_at_once_and_costs_nothing_from_then_on(provider, sim, fault):
    p = provider()
    p.create_node({"ladder": LADDER}, WORKER, 1)
    [id] = running(sim, p)
    sim.control(fault, id=id.split("-")[1])
    assert p.non_terminated_nodes({}) == []
    assert p.is_terminated(id)
    sim.wait(lambda s: s["rentals"] == [])


def test_a_rental_that_never_runs_is_given_up_and_its_machine_avoided(provider, sim, monkeypatch):
    sim.control("next", market="vast", fault="stuck")
    p = provider()
    p.create_node({"ladder": LADDER}, WORKER, 1)
    [stuck] = sim.state()["rentals"]
    p.settings = replace(p.settings, boot_minutes=1e-9)
    assert p.non_terminated_nodes({}) == []
    sim.wait(lambda s: s["rentals"] == [])
    p.create_node({"ladder": LADDER}, WORKER, 1)
    [other] = sim.state()["rentals"]
    assert other["machine"] != stuck["machine"]


def test_a_rental_without_ssh_is_given_up(provider, sim, monkeypatch):
    p = provider()
    p.create_node({"ladder": LADDER}, WORKER, 1)
    running(sim, p)
    p.settings = replace(p.settings, login_minutes=1e-9)
    assert p.non_terminated_nodes({}) == []
    sim.wait(lambda s: s["rentals"] == [])
    assert "no login" in p.memory.path.read_text()


def test_spot_then_on_demand_then_the_other_market(provider, sim):
    p, spots, markets = provider(), [], []
    for _ in range(5):
        p.create_node({"ladder": LADDER}, WORKER, 1)
        new = sim.state()["rentals"][-1]
        spots.append(new["spot"])
        markets.append(new["market"])
        if len(spots) == 1:  # bids of others rise above our cap
            sim.control("price", gpu="RTX 4090", min_bid=9.0)
            sim.wait(lambda s: s["rentals"][0]["state"] != "running")
            p.refresh()
        if len(p.non_terminated_nodes({})) == 4:
            break
    assert spots[0] and not any(spots[1:])
    assert markets[0] == "vast" and markets[1] == "vast" and markets[-1] == "runpod"


def test_numbers_in_the_mesh_are_used_in_turn(provider, sim):
    p, seen = provider(), []
    for _ in range(9):
        p.create_node({"ladder": LADDER}, WORKER, 1)
        [id] = p.non_terminated_nodes({})
        seen.append(p.slot(id))
        p.terminate_node(id)
    assert seen == [2, 3, 4, 5, 6, 7, 8, 9, 2]


def test_a_market_that_cannot_be_asked_raises(provider, sim):
    p = provider()
    p.create_node({"ladder": LADDER}, WORKER, 1)
    sim.control("api", market="vast", endpoint="GET /api/v1/instances/", fault="shape", count=1)
    with pytest.raises(MarketError):
        p.non_terminated_nodes({})
    assert len(p.non_terminated_nodes({})) == 1


def test_nothing_is_rented_beyond_the_budget(provider, sim):
    p = provider(budget={"per_hour_usd": 0.3})
    p.create_node({"ladder": LADDER}, WORKER, 1)
    with pytest.raises(MarketError, match="per_hour_usd"):
        p.create_node({"ladder": LADDER}, WORKER, 1)
    assert len(sim.state()["rentals"]) == 1


def test_a_create_without_an_answer_is_found_and_ended(provider, sim, monkeypatch):
    p = provider()
    sim.control("api", market="vast", endpoint="PUT /api/v0/asks/{id}/", fault="500", count=1)
    with pytest.raises(MarketError):
        p.create_node({"ladder": LADDER}, WORKER, 1)
    assert p.non_terminated_nodes({}) == []
    sim.wait(lambda s: s["rentals"] == [])


def test_a_head_that_was_taken_up_is_no_orphan(provider, sim, monkeypatch):
    """`ray up` dies before it records the reply to its create, and is rerun: the head that it finds and sets up stays."""
    write = Ledger._write

    def dies(self, **event):
        if event["event"] == "rented":
            raise KeyboardInterrupt
        write(self, **event)

    monkeypatch.setattr(Ledger, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        provider().create_node({"ladder": LADDER[2:]}, WORKER | {ray.TAG_RAY_NODE_KIND: ray.NODE_KIND_HEAD}, 1)
    monkeypatch.setattr(Ledger, "_write", write)
    again = provider()
    [id] = again.non_terminated_nodes({})
    again.set_node_tags(id, {ray.TAG_RAY_NODE_STATUS: ray.STATUS_SETTING_UP})
    now = time.time() + UNANSWERED_S + 1
    monkeypatch.setattr("cluster.money.ledger.time.time", lambda: now)
    assert provider().non_terminated_nodes({}) == [id]


def test_a_rental_that_could_not_be_destroyed_is_not_reported_as_ended(provider, sim, monkeypatch):
    """An outbid machine is no longer a node, but its disk is still billed."""
    monkeypatch.setattr("cluster.market.http.sleep", lambda s: None)
    p = provider()
    p.create_node({"ladder": LADDER}, WORKER, 1)
    [id] = running(sim, p)
    sim.control("outbid", id=id.split("-")[1])
    sim.control("api", market="vast", endpoint="DELETE /api/v0/instances/{id}/", fault="500", count=TRIES * END_TRIES)
    monkeypatch.setattr("cluster.node.ending.AGAIN_S", 0.0)
    with pytest.raises(MarketError, match="HTTP 500"):
        p.end()
    sim.control("api", market="vast", endpoint="GET /api/v1/instances/", fault="shape", count=2)
    assert p.end() == 1 and sim.state()["rentals"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"provider": {"markets": ["vast"], "netwrok": "mesh"}}, r"provider\.netwrok is not a key.*Nearest: network"),
        ({"provider": {"markets": []}}, r"provider\.markets"),
        ({"provider": {"markets": ["vast"], "boot_minutes": 0}}, r"provider\.boot_minutes must be a number above 0"),
        ({"provider": {"markets": ["vast"], "network": "vpn"}}, r"provider\.network"),
        ({"provider": {"markets": ["vast"], "image": "i"}}, r"ladder\[0\]\.market is runpod, and provider\.markets"),
        ({"provider": {"markets": ["vast"], "image": "i", "budget": None}}, r"provider\.budget is a section of keys"),
        ({"cluster_name": "a/b"}, "cluster_name"),
        ({"cluster_name": ".."}, "cluster_name"),
        ({"max_workers": 125}, "max_workers: the mesh has room for 124"),
        (
            {"available_node_types": {"gpu": {"node_config": {"disk_gb": "60GB", "ladder": LADDER}}}},
            r"gpu\.node_config\.disk_gb",
        ),
    ],
)
def test_mistakes_in_the_yaml_name_the_key(change, message):
    with pytest.raises(ValueError, match=message):
        complete(cluster() | change)


def test_here_is_a_head_that_is_not_rented(provider, sim):
    p = provider(here=True)
    assert p.non_terminated_nodes({ray.TAG_RAY_NODE_KIND: "head"}) == ["here"]
    assert p.internal_ip("here") == "127.77.0.1" and p.is_running("here")
    p.terminate_node("here")
    assert p.end() == 0 and sim.bill()["rentals"] == []
