"""cluster/provider.py over the simulated markets' real HTTP, without boxes: what Ray is told, and what is rented."""

import time
from dataclasses import replace

import pytest
from click import ClickException
from ray.autoscaler import tags as ray

from cluster import failures, tags
from cluster import provider as module
from cluster.bootstrap import complete
from cluster.client import TRIES
from cluster.ending import TRIES as END_TRIES
from cluster.failures import IN_A_ROW
from cluster.ledger import UNANSWERED_S, Ledger
from cluster.market import MarketError
from cluster.progress import Progress, progress
from cluster.provider import Provider

LADDER = [
    {"market": "vast", "gpus": ["RTX 4090"], "max_usd_per_hour": 0.5},
    {"market": "vast", "gpus": ["RTX 4090"], "spot": False, "max_usd_per_hour": 0.6},
    {"market": "runpod", "gpus": ["RTX 4090"], "spot": False, "max_usd_per_hour": 0.8},
]
ANY = [{"market": "vast", "max_usd_per_hour": 9.0}]
WORKER = {
    ray.TAG_RAY_NODE_KIND: ray.NODE_KIND_WORKER,
    ray.TAG_RAY_USER_NODE_TYPE: "gpu",
    ray.TAG_RAY_NODE_STATUS: ray.STATUS_UNINITIALIZED,
    ray.TAG_RAY_LAUNCH_REQUEST: "12345678-1234-1234-1234-123456789abc",
}


def cluster(**provider) -> dict:
    return {
        "cluster_name": "c1",
        "max_workers": 2,
        "head_node_type": "head",
        "provider": {
            "type": "external", "module": "cluster.provider.Provider", "markets": ["vast", "runpod"], "image": "i", **provider,
        },
        "available_node_types": {
            "head": {"resources": {}, "node_config": {"ladder": [LADDER[2]]}},
            "gpu": {"resources": {"GPU": 1}, "node_config": {"ladder": LADDER}},
        },
    }  # fmt: skip


@pytest.fixture
def provider(sim, tmp_path, monkeypatch):
    """make() → a Provider of the same cluster, as another process would have it."""
    monkeypatch.setenv("SHOESTRING_STATE", str(tmp_path))
    monkeypatch.setenv("SHOESTRING_PACE", "1000")
    for name in ("VAST", "RUNPOD"):
        monkeypatch.setenv(f"{name}_URL", sim.env[f"{name}_URL"])
        monkeypatch.setenv(f"{name}_API_KEY", sim.env[f"{name}_API_KEY"])
    monkeypatch.setattr(module, "STALE_S", 0.0)
    monkeypatch.setattr(module, "WAIT_S", 0.05)

    def make(**settings):
        return Provider(complete(cluster(**settings))["provider"], "c1")

    return make


def running(sim, provider) -> list[str]:
    """Node ids, once all that is rented runs."""
    sim.wait(lambda s: s["rentals"] and all(r["state"] == "running" for r in s["rentals"]))
    return provider.non_terminated_nodes({})


def test_a_node_has_its_tags_for_every_process_and_is_gone_when_terminated(provider, sim):
    first = provider()
    first.create_node({"ladder": LADDER}, WORKER, 2)
    assert len(first.non_terminated_nodes({})) == 2  # listed from the first moment
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
    """`ray up` dies before it notes the answer to its create, and is typed again: the head that it finds and sets up stays."""
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
    monkeypatch.setattr("cluster.ledger.time.time", lambda: now)
    assert provider().non_terminated_nodes({}) == [id]


def test_what_could_not_be_destroyed_is_not_said_to_be_ended(provider, sim, monkeypatch):
    """A machine that was outbid is no node any more, and its disk costs."""
    monkeypatch.setattr("cluster.client.sleep", lambda s: None)
    p = provider()
    p.create_node({"ladder": LADDER}, WORKER, 1)
    [id] = running(sim, p)
    sim.control("outbid", id=id.split("-")[1])
    sim.control("api", market="vast", endpoint="DELETE /api/v0/instances/{id}/", fault="500", count=TRIES * END_TRIES)
    monkeypatch.setattr("cluster.ending.AGAIN_S", 0.0)
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


def login_fails(sim, p: Provider) -> str:
    """One more is rented, and given up since it can't be logged in to. Its machine."""
    p.create_node({"ladder": ANY}, WORKER, 1)
    [id] = running(sim, p)
    place = p.nodes.get(id).place
    settings, p.settings = p.settings, replace(p.settings, login_minutes=1e-9)
    assert p.non_terminated_nodes({}) == []
    p.settings = settings
    sim.wait(lambda s: s["rentals"] == [])
    return place


def test_boxes_that_fail_in_a_row_stop_with_the_reason_and_one_is_tried_later(provider, sim, monkeypatch):
    p = provider()
    machines = {login_fails(sim, p) for _ in range(IN_A_ROW)}
    assert len(machines) == IN_A_ROW  # none twice
    for _ in range(3):
        with pytest.raises(
            MarketError, match=r"5 boxes in a row failed, the last one vast-\d+: no login in login_minutes"
        ):
            p.create_node({"ladder": ANY}, WORKER, 1)
    assert len(sim.bill()["rentals"]) == IN_A_ROW
    assert "5 boxes in a row failed" in p.ledger.notes(failures.NOTES)["gpu"]["why"]
    now = time.time() + failures.PAUSE_S + 1
    monkeypatch.setattr("cluster.failures.time.time", lambda: now)
    p.create_node({"ladder": ANY}, WORKER, 1)
    [id] = running(sim, p)
    assert p.ledger.notes(failures.NOTES)["gpu"]["why"] is None
    p.set_node_tags(id, {ray.TAG_RAY_NODE_STATUS: ray.STATUS_UP_TO_DATE})
    p.terminate_node(id)
    login_fails(sim, p)
    p.create_node({"ladder": ANY}, WORKER, 1)  # it begins at nought again


def test_who_is_outbid_before_it_worked_has_not_failed(provider, sim):
    p = provider()
    for _ in range(IN_A_ROW + 1):
        p.create_node({"ladder": ANY}, WORKER, 1)
        [id] = running(sim, p)
        assert p.nodes.get(id).rental.spot
        sim.control("outbid", id=id.split("-")[1])
        while p.non_terminated_nodes({}):
            pass


@pytest.mark.parametrize(("market", "rung"), [("vast", 0), ("runpod", 2)])
def test_a_set_up_that_failed_leaves_a_log_and_a_bad_machine(provider, sim, market, rung, monkeypatch):
    monkeypatch.setattr("cluster.runpod.LOG_S", 0.3)
    p = provider()
    p.create_node({"ladder": LADDER[rung:]}, WORKER, 1)
    [id] = running(sim, p)
    machine = p.nodes.get(id).place
    p.set_node_tags(id, {ray.TAG_RAY_NODE_STATUS: ray.STATUS_UPDATE_FAILED})
    p.terminate_node(id)
    said = (p.folder.path / "boots" / f"{id}.log").read_text()
    assert "what the container printed" in said  # the market's own log, which is there at the second look
    assert "its set-up failed" in said and f"machine {machine}" in said and f"== {market} says: running" in said
    assert p.memory.is_bad(market, machine)


def test_what_the_market_does_not_say_of_a_rental_is_known_from_its_offer(provider, sim):
    """RunPod's list names no place, and a bad one is remembered by it."""
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


def test_ray_up_says_how_far_its_head_is_and_gives_up_one_that_never_boots(provider, sim, capsys):
    sim.control("next", market="runpod", fault="stuck")
    p = provider(boot_minutes=0.02)
    with pytest.raises(ClickException, match=r"The head runpod-\w+ did not boot, and was ended\. Type ray up again"):
        p.create_node({"ladder": LADDER[2:]}, WORKER | {ray.TAG_RAY_NODE_KIND: ray.NODE_KIND_HEAD}, 1)
    assert "(boot_minutes: 0.02)" in capsys.readouterr().out
    sim.wait(lambda s: s["rentals"] == [])


def test_ray_up_says_what_an_earlier_head_spent_is_not_known(provider, sim, caplog):
    """Its budget.total_usd is of the cluster's whole life."""
    p, head = provider(), WORKER | {ray.TAG_RAY_NODE_KIND: ray.NODE_KIND_HEAD}
    p.create_node({"ladder": LADDER[2:]}, head, 1)
    [id] = running(sim, p)
    p.set_node_tags(id, {ray.TAG_RAY_NODE_STATUS: ray.STATUS_UP_TO_DATE})
    sim.control("vanish", id=id.split("-")[1])
    assert "never fetched" not in caplog.text
    provider().create_node({"ladder": LADDER[2:]}, head, 1)
    assert f"c1: the ledger of its head {id} was never fetched (it has ended)" in caplog.text
