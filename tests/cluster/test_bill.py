"""The ledger equals the simulated markets' own bill, through the real clients, over a random history of many rentals."""

import random

import pytest

from cluster.market.base import MarketError, Order, Taken, Want
from cluster.market.runpod import RunPod
from cluster.market.vast import Vast
from cluster.money.budget import Budget
from cluster.money.ledger import Ledger
from cluster.money.metered import Kept

POLL_S = 5.0


@pytest.fixture
def markets(both, tmp_path, monkeypatch):
    """Returns {name: Kept} with a new ledger object each time, as in a new process."""
    monkeypatch.setenv("SHOESTRING_STATE", str(tmp_path))
    monkeypatch.setattr("cluster.market.http.sleep", lambda s: None)
    clients = {"vast": Vast("k"), "runpod": RunPod("k")}
    for name, market in clients.items():
        market.client.http = getattr(both, name)

    def make(budget=Budget()):  # noqa: B008
        ledger = Ledger("t")
        return {name: Kept(market, ledger, budget) for name, market in clients.items()}

    return make


def poll(markets, chance) -> None:
    """Polls like the provider: destroys lost rentals, here with random delays. Also an offline host, since it may bill."""
    for market in markets.values():
        for rental in market.list():
            if rental.state == "lost" and ("offline" in rental.why or chance.random() < 0.3):
                market.destroy(rental.id)


@pytest.mark.parametrize("seed", range(2))
def test_a_random_life_to_the_cent(both, clock, markets, seed):
    """Rentals are created, outbid, vanish, exit, never boot or are destroyed, APIs fail and processes die: the bill equals the
    ledger's, and the ledger has every rental."""
    chance, kept, failed = random.Random(seed), markets(), 0
    for i in range(150):
        alive = [r for r in both.world.rentals.values() if r.alive]
        match chance.choice(["rent", "rent", "rent", "fault", "destroy", "boot", "api", "die", "wait", "wait"]):
            case "rent" if len(alive) < 6:
                market = chance.choice(list(kept.values()))
                spot = market.name == "vast" and chance.random() < 0.7
                order = Order(f"shoestring/t;k=w;m={i}", "image", 20, None, "ssh-ed25519 AAAA me")
                try:
                    offers = market.offers(Want(count=1, spot=spot))
                    if not offers:
                        continue
                    offer = chance.choice(offers)
                    bid = offer.usd_per_hour * 1.1 if spot else None
                    market.create(offer, Order(**vars(order) | {"bid_usd_per_hour": bid}))
                except Taken:
                    pass
                except MarketError:
                    failed += 1
            case "fault" if alive:
                rental = chance.choice(alive)
                both.control(chance.choice(["outbid", "vanish", "exit", "offline", "freeze", "restart"]), id=rental.id)
            case "destroy" if alive:
                rental = chance.choice(alive)
                kept[rental.machine.market].destroy(rental.id)
            case "boot":
                both.control(
                    "next", market=chance.choice(["vast", "runpod"]), fault=chance.choice(["stuck", "noboot", "taken"])
                )
            case "api":
                endpoint = ("vast", "PUT /api/v0/asks/{id}/") if chance.random() < 0.5 else ("runpod", "POST /v2/pods")
                both.control(
                    "api", market=endpoint[0], endpoint=endpoint[1], fault=chance.choice(["500", "json", "shape"])
                )
            case "die":
                kept = markets()
            case "wait":
                for machine in both.world.machines.values():
                    machine.taken = False
                for rental in alive:
                    if rental.state in ("provisioning", "loading"):  # given up, as by the provider after ten minutes
                        kept[rental.machine.market].destroy(rental.id)
                clock(1800.0)
                poll(kept, chance)
        if any(r.booting for r in both.world.rentals.values()):
            both.tick()
        clock(POLL_S)
        poll(kept, chance)
    ledger = Ledger("t")
    for rental in ledger.living():
        if rental.id:
            kept[rental.market].destroy(rental.id)
    clock(400.0)
    poll(kept, chance)
    bill = both.vast.get("/_sim/bill").json()
    now = bill["now"]
    assert not ledger.living() and not [r for r in both.world.rentals.values() if r.alive]
    ours = {e.id: e for e in ledger.entries() if e.id}
    assert {r["id"] for r in bill["rentals"]} <= ours.keys()
    assert len(bill["rentals"]) > 12 and failed and bill["total_usd"] > 1.5
    for r in bill["rentals"]:
        # A rental that ended on its own did so between two polls.
        assert -1e-4 < ours[r["id"]].usd(now) - r["usd"] < 0.005, r
    assert ledger.spent(now) == pytest.approx(bill["total_usd"], abs=0.01)
    print(f"{len(bill['rentals'])} rentals: ledger ${ledger.spent(now):.4f}, bill ${bill['total_usd']:.4f}")
