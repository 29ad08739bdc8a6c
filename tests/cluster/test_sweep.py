"""`sweep` and `status` against the simulated markets: an orphan is found, and a cluster with a head is left alone."""

import io
import json
import os
import time

import fsspec
import pytest

from cluster import cost, ssh, status, sweep
from cluster.market import registry
from cluster.market.base import Order, Want
from cluster.money.budget import Budget
from cluster.money.ledger import Ledger
from cluster.money.metered import Kept
from cluster.node import head_ledger
from cluster.node.key_folder import Folder
from cluster.node.link_probe import measure


@pytest.fixture
def rent(sim, tmp_path, monkeypatch):
    """rent("c", "k=w") → id of a rental; with led=True this machine has a ledger of that cluster."""
    monkeypatch.setenv("SHOESTRING_STATE", str(tmp_path))
    monkeypatch.setenv("SHOESTRING_PACE", "1000")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in sim.env.items():
        monkeypatch.setenv(name, value)

    def make(cluster: str, tags: str = "k=w", market: str = "vast", kept: bool = False) -> str:
        found = registry.find(market)
        if kept:
            found = Kept(found, Ledger(cluster), Budget())
        offer = found.offers(Want(spot=False))[0]
        return found.create(offer, Order(f"shoestring/{cluster};{tags}", "i", 20, None, "ssh-ed25519 AAAA me"))

    return make


def test_only_what_has_no_head_is_swept(rent, sim, monkeypatch, capsys):
    lost, other = rent("lost", kept=True), rent("lost", market="runpod", kept=True)
    Ledger("lost").observe("vast", [], time.time() - 600)  # this machine led it until ten minutes ago
    led, headed, unknown = rent("led", kept=True), rent("headed", "k=h"), rent("unknown")
    Ledger("led").observe("vast", registry.find("vast").list(), time.time())
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert sweep.main([]) == 1
    said = capsys.readouterr().out
    assert (
        "Destroy 2 rentals of lost ($" in said and "Nothing was destroyed." in said and len(sim.state()["rentals"]) == 5
    )
    assert sweep.main(["--yes"]) == 1  # undecidable rentals are left alone
    said = capsys.readouterr().out
    assert f"vast-{lost} is destroyed." in said and f"runpod-{other} is destroyed." in said
    assert "python -m cluster sweep unknown" in said
    assert {r["id"] for r in sim.state()["rentals"]} == {led, headed, unknown}
    assert not Ledger("lost").living() and Ledger("lost").spent(time.time() + 999) > 0
    assert sweep.main(["unknown", "--yes"]) == 0
    assert sweep.main([]) == 0
    assert "Nothing is left behind." in capsys.readouterr().out
    assert sweep.main(["headedd", "--yes"]) == 2
    assert "Nearest: headed." in capsys.readouterr().err
    assert sweep.main(["led", "headed", "--yes"]) == 0
    assert sim.state()["rentals"] == []
    assert sweep.main([]) == 0
    assert "runpod and vast list no rental of ours." in capsys.readouterr().out


def test_what_could_not_be_asked_is_not_nothing(rent, sim, monkeypatch, capsys):
    monkeypatch.setattr("cluster.market.http.sleep", lambda s: None)
    for args in ([], ["c"]):
        sim.control("api", market="vast", endpoint="GET /api/v1/instances/", fault="html", count=5)
        assert sweep.main(args) == 1
        told = "".join(capsys.readouterr())
        assert "Left out: vast, list: HTTP 502: a web page, '502 Bad Gateway'" in told
        assert (
            f"runpod lists no rental of {args[0] if args else 'ours'}. Rentals at vast are unknown: try again." in told
        )
    monkeypatch.setenv("VAST_API_KEY", "wrong")
    monkeypatch.setenv("RUNPOD_API_KEY", "wrong")
    assert sweep.main([]) == 1
    told = "".join(capsys.readouterr())
    assert told.count("the API key is refused") == 2
    assert "No market could be reached to look for a rental of ours. Rentals at runpod and vast are unknown" in told
    monkeypatch.delenv("VAST_API_KEY")
    monkeypatch.setenv("RUNPOD_API_KEY", sim.env["RUNPOD_API_KEY"])
    monkeypatch.setenv("XDG_CONFIG_HOME", os.devnull)
    assert sweep.main([]) == 0
    assert "runpod lists no rental of ours.\n" in capsys.readouterr().out
    rent("unknown", market="runpod")
    monkeypatch.setenv("VAST_API_KEY", "wrong")
    assert sweep.main([]) == 1
    assert "Nothing else is left behind there. Rentals at vast are unknown" in capsys.readouterr().out


def test_a_rental_that_could_not_be_destroyed_is_reported(rent, sim, monkeypatch, capsys):
    monkeypatch.setattr("cluster.market.http.sleep", lambda s: None)
    id = rent("c")
    sim.control("api", market="vast", endpoint="DELETE /api/v0/instances/{id}/", fault="500", count=9)
    assert sweep.main(["c", "--yes"]) == 1
    assert f"vast-{id} could not be destroyed" in capsys.readouterr().err


def test_an_unreadable_store_does_not_stop_a_sweep(rent, sim, monkeypatch, capsys):
    """A shell without the credentials of budget.store can sweep, but still can't rent."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # an earlier test's client has credentials
    id = rent("c", kept=True)
    Ledger("c").note("store", "place", address="s3://bucket/ledgers")
    with pytest.raises(Exception, match="credentials"):
        Ledger("c", "s3://bucket/ledgers")
    assert sweep.main(["c", "--yes"]) == 0
    assert f"vast-{id} is destroyed." in capsys.readouterr().out and sim.state()["rentals"] == []


def test_status(rent, sim, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # not another test's head
    assert status.main([]) == 0
    assert "Nothing is rented." in capsys.readouterr().out
    id = rent("c", kept=True)
    sim.wait(lambda s: s["rentals"][0]["state"] == "running")
    assert status.main(["--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [r["id"] for r in shown["rentals"]] == [id] and shown["clusters"][0]["usd_per_hour"] > 0
    assert status.main([]) == 0
    said = capsys.readouterr().out
    assert f"vast-{id}" in said and "1 × " in said and "on demand" in said and "c: $0.00 spent" in said
    sim.control("api", market="vast", endpoint="GET /api/v1/instances/", fault="shape", count=9)
    monkeypatch.setattr("cluster.market.http.sleep", lambda s: None)
    assert status.main([]) == 1
    said = capsys.readouterr().out
    assert "Nothing is rented." not in said and "isn't known" in said
    for name in ("VAST_API_KEY", "RUNPOD_API_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", os.devnull)
    assert status.main([]) == 2 and "Nothing is rented." not in capsys.readouterr().out


def test_a_link_is_measured():
    slow = "sleep 0.05; "  # no faster than the program at its other end
    link = measure(["sh", "-c"])
    assert 0 < link.round_trip_ms < 1000 and link.up_mb_s > 1 and link.down_mb_s > 1
    with pytest.raises(OSError, match="no such machine"):
        measure(["sh", "-c", slow + "echo no such machine >&2; exit 1"])


def test_ssh_names_the_nearest_node_and_says_why_one_has_none(rent, sim, capsys):
    id = rent("c", kept=True)
    node = f"vast-{id}"
    assert ssh.main([node[:-1]]) == 2
    assert f"No market lists a rental {node[:-1]} of ours. Nearest: {node}." in capsys.readouterr().err
    sim.wait(lambda s: s["rentals"][0]["state"] == "running")
    assert ssh.main([node]) == 2
    assert f"{node} belongs to c, whose key (" in capsys.readouterr().err
    Folder("c")
    assert ssh.main([node, "true"]) == 255  # a box of this simulator has no sshd
    sim.control("offline", id=id)
    assert ssh.main([node]) == 2 and f"{node} can't be logged in to: it is lost" in capsys.readouterr().err


def test_a_head_that_ended_on_its_own_costs_no_more_and_is_reported(rent, sim, capsys):
    """Whatever this machine's ledger recorded last: its market is queried if the head can't be."""
    id = rent("c", "k=h", kept=True)
    Ledger("c").note(head_ledger.LED, f"vast-{id}")
    sim.wait(lambda s: s["rentals"][0]["state"] == "running")
    assert cost.main(["c"]) == 0
    said = capsys.readouterr().out
    assert f"the ledger of its head vast-{id} was never fetched (" in said and "(it has ended)" not in said
    asked = Ledger("c").polled()
    sim.control("vanish", id=id)
    assert cost.main(["c"]) == 0
    said = capsys.readouterr().out
    assert f"the ledger of its head vast-{id} was never fetched (it has ended)" in said and "now $0.000 an hour" in said
    assert Ledger("c").polled() == asked  # looking at it doesn't make this machine its head
