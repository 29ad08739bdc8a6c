"""Failed boots, single or several in a row; and the progress of a boot in `status` and `ray up`."""

import time
from dataclasses import replace

import pytest
from click import ClickException
from ray.autoscaler import tags as ray

from cluster.market.base import MarketError
from cluster.money.ledger import Ledger
from cluster.node import failures
from cluster.node.failures import IN_A_ROW
from cluster.node.progress import Progress, progress
from cluster.provider import Provider
from tests.cluster.nodes import ANY, LADDER, WORKER, running


def login_fails(sim, p: Provider) -> str:
    """Rents one more box and gives it up because login fails. Returns its machine."""
    p.create_node({"ladder": ANY}, WORKER, 1)
    [id] = running(sim, p)
    place = p.nodes.get(id).place
    settings, p.settings = p.settings, replace(p.settings, login_minutes=1e-9)
    assert p.non_terminated_nodes({}) == []
    p.settings = settings
    sim.wait(lambda s: s["rentals"] == [])
    return place


def test_a_slow_host_has_25_minutes_to_boot(provider, sim):
    """Vast's slow hosts take 10 to 30 minutes."""
    p = provider()
    p.create_node({"ladder": ANY}, WORKER, 1)
    [id] = p.non_terminated_nodes({})
    node = p.nodes.get(id)
    for minutes, lost in ((24, False), (26, True)):
        node.rental = replace(node.rental, state="starting", created=time.time() - minutes * 60)
        assert bool(node.fault(p.settings, leads=True)) == lost


@pytest.mark.slow
def test_boxes_that_fail_in_a_row_stop_with_the_reason_and_one_is_tried_later(provider, sim, monkeypatch):
    p = provider()
    machines = {login_fails(sim, p) for _ in range(IN_A_ROW)}
    assert len(machines) == IN_A_ROW  # all different
    for _ in range(3):
        with pytest.raises(
            MarketError, match=r"5 boxes in a row failed, the last one vast-\d+: no login within login_minutes"
        ):
            p.create_node({"ladder": ANY}, WORKER, 1)
    assert len(sim.bill()["rentals"]) == IN_A_ROW
    assert "5 boxes in a row failed" in p.ledger.notes(failures.NOTES)["gpu"]["why"]
    now = time.time() + failures.PAUSE_S + 1
    monkeypatch.setattr("cluster.node.failures.time.time", lambda: now)
    p.create_node({"ladder": ANY}, WORKER, 1)
    [id] = running(sim, p)
    assert p.ledger.notes(failures.NOTES)["gpu"]["why"] is None
    p.set_node_tags(id, {ray.TAG_RAY_NODE_STATUS: ray.STATUS_UP_TO_DATE})
    p.terminate_node(id)
    login_fails(sim, p)
    p.create_node({"ladder": ANY}, WORKER, 1)  # the count restarts at zero


def test_a_box_outbid_before_it_worked_has_not_failed(provider, sim):
    p = provider()
    for _ in range(IN_A_ROW + 1):
        p.create_node({"ladder": ANY}, WORKER, 1)
        [id] = running(sim, p)
        assert p.nodes.get(id).rental.spot
        sim.control("outbid", id=id.split("-")[1])
        assert p.non_terminated_nodes({}) == []


@pytest.mark.parametrize(("market", "rung"), [("vast", 0), ("runpod", 2)])
def test_a_set_up_that_failed_leaves_a_log_and_a_bad_machine(provider, sim, market, rung, monkeypatch):
    monkeypatch.setattr("cluster.market.runpod.LOG_S", 0.3)
    p = provider()
    p.create_node({"ladder": LADDER[rung:]}, WORKER, 1)
    [id] = running(sim, p)
    machine = p.nodes.get(id).place
    p.set_node_tags(id, {ray.TAG_RAY_NODE_STATUS: ray.STATUS_UPDATE_FAILED})
    p.terminate_node(id)
    said = (p.folder.path / "boots" / f"{id}.log").read_text()
    assert "what the container printed" in said  # the market's own log, which is there at the second look
    assert "its set-up failed" in said and f"machine {machine}" in said and f"== {market} reports: running" in said
    assert p.memory.is_bad(market, machine)


def test_what_the_market_does_not_say_of_a_rental_is_known_from_its_offer(provider, sim):
    """RunPod's list has no place, by which a bad machine is remembered."""
    p = provider()
    p.create_node({"ladder": LADDER}, WORKER, 1)
    [id] = running(sim, p)
    node = p.nodes.get(id)
    node.offered, node.rental = "RTX 4090 in EU-SE-1", replace(node.rental, machine="")
    p.set_node_tags(id, {ray.TAG_RAY_NODE_STATUS: ray.STATUS_UPDATE_FAILED})
    p.terminate_node(id)
    assert p.memory.is_bad("vast", "RTX 4090 in EU-SE-1")


def test_a_refused_key_is_noted_as_the_reason_and_goes_with_it(provider, sim):
    p = provider()
    sim.control("api", market="vast", endpoint="GET /api/v1/instances/", fault="shape", count=1)
    with pytest.raises(MarketError):
        p.non_terminated_nodes({})
    assert "vast, list" in p.ledger.notes(failures.NOTES)[failures.MARKETS]["why"]
    p.non_terminated_nodes({})
    assert p.ledger.notes(failures.NOTES)[failures.MARKETS]["why"] is None


def test_ray_down_says_that_the_heads_ledger_could_not_be_fetched_and_ends_it_all_the_same(provider, sim, caplog):
    p = provider()
    p.create_node({"ladder": LADDER[2:]}, WORKER | {ray.TAG_RAY_NODE_KIND: ray.NODE_KIND_HEAD}, 1)
    [head] = running(sim, p)
    p.set_node_tags(head, {ray.TAG_RAY_NODE_STATUS: ray.STATUS_UP_TO_DATE})
    p.create_node({"ladder": LADDER}, WORKER, 1)
    running(sim, p)
    again = provider()
    again.terminate_nodes(again.non_terminated_nodes({}))
    assert f"The ledger of the head {head} can't be fetched" in caplog.text
    assert sim.state()["rentals"] == [] and not again.ledger.living()


def test_status_shows_how_far_a_boot_is(provider, sim):
    sim.control("next", market="vast", fault="stuck")
    p = provider()
    p.create_node({"ladder": LADDER}, WORKER, 1)
    [id] = p.non_terminated_nodes({})
    step = lambda: progress(p.nodes.get(id).rental, Ledger("c1")).step  # noqa: E731
    assert step() == "loading"
    p.terminate_node(id)
    p.create_node({"ladder": LADDER}, WORKER, 1)
    [id] = running(sim, p)
    seen = [step()]
    for status in (ray.STATUS_WAITING_FOR_SSH, ray.STATUS_SYNCING_FILES, ray.STATUS_SETTING_UP, ray.STATUS_UP_TO_DATE):
        p.set_node_tags(id, {ray.TAG_RAY_NODE_STATUS: status})
        seen.append(step())
    assert seen == ["login", "login", "installing", "installing", "Ray joined"]
    sim.control("outbid", id=id.split("-")[1])
    p.markets["vast"].list()
    assert progress(p.ledger.entry("vast", id.split("-")[1]).rental, p.ledger).step == "lost"
    assert Progress("installing", 100.0).says(225.0) == "installing 2:05"


@pytest.mark.slow
def test_ray_up_says_how_far_its_head_is_and_gives_up_one_that_never_boots(provider, sim, capsys):
    sim.control("next", market="runpod", fault="stuck")
    p = provider(boot_minutes=0.02)
    with pytest.raises(ClickException, match=r"The head runpod-\w+ did not boot and was destroyed\. Run ray up again"):
        p.create_node({"ladder": LADDER[2:]}, WORKER | {ray.TAG_RAY_NODE_KIND: ray.NODE_KIND_HEAD}, 1)
    assert "(boot_minutes: 0.02)" in capsys.readouterr().out
    sim.wait(lambda s: s["rentals"] == [])


def test_ray_up_says_what_an_earlier_head_spent_is_not_known(provider, sim, caplog):
    """budget.total_usd covers the cluster's whole life."""
    p, head = provider(), WORKER | {ray.TAG_RAY_NODE_KIND: ray.NODE_KIND_HEAD}
    p.create_node({"ladder": LADDER[2:]}, head, 1)
    [id] = running(sim, p)
    p.set_node_tags(id, {ray.TAG_RAY_NODE_STATUS: ray.STATUS_UP_TO_DATE})
    sim.control("vanish", id=id.split("-")[1])
    assert "never fetched" not in caplog.text
    provider().create_node({"ladder": LADDER[2:]}, head, 1)
    assert f"c1: the ledger of its head {id} was never fetched (it has ended)" in caplog.text
