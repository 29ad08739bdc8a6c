"""The caps hold to the cent, and enforcing them continues after a crash at any point."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from cluster.market.base import MarketError, Taken
from cluster.money.budget import Budget
from cluster.money.ledger import Ledger
from cluster.money.metered import Kept
from cluster.node.steward import Steward
from tests.cluster.test_ledger import OFFER, ORDER, RENTAL, Shelf, state  # noqa: F401

START = 1000.0
WORKER = replace(RENTAL, usd_per_hour=0.9, disk_usd_per_hour=0.1, created=START, started=START)
HEAD = replace(WORKER, id="9", label="shoestring/c;k=h", usd_per_hour=0.2, disk_usd_per_hour=0.0)
HOUR = 3600.0


def fleet(n: int = 2) -> tuple[Ledger, Shelf]:
    """Returns a head at $0.2 and n workers at $1 an hour, all since START."""
    ledger, market = Ledger("c"), Shelf()
    market.rentals = {"9": HEAD} | {str(i): replace(WORKER, id=str(i)) for i in range(1, n + 1)}
    ledger.observe("vast", market.list(), at=START + 1)
    return ledger, market


def test_keys_and_values_are_checked():
    assert Budget.read({"total_usd": 20, "per_hour_usd": None}) == Budget(total_usd=20.0)
    with pytest.raises(ValueError, match=r"provider\.budget\.totl_usd is not a key of a budget\. Nearest: total_usd\."):
        Budget.read({"totl_usd": 20})
    assert Budget.read({"store": "s3://b/x"}).store == "s3://b/x"
    assert Budget.read({"max_hours": 8}) == Budget(max_hours=8.0) and Budget.read({"max_hours": None}).max_hours is None
    for bad in ("20", 0, -1, True, float("nan")):
        with pytest.raises(ValueError, match=r"provider\.budget\.total_usd must be a number above 0"):
            Budget.read({"total_usd": bad})
    with pytest.raises(ValueError, match="section of keys"):
        Budget.read(20)


def test_per_hour_is_a_soft_cap():
    ledger, _ = fleet()  # $2.2 an hour
    budget = Budget(per_hour_usd=3.2)
    assert budget.refuses(ledger, 1.0, START + 60) is None
    assert "3.210 an hour with this rental, but budget.per_hour_usd is 3.2" in budget.refuses(ledger, 1.01, START + 60)
    assert budget.check(ledger, START + 99 * HOUR) == "ok"
    assert Budget(per_hour_usd=2.0).check(ledger, START + 60) == "soft"


def test_total_keeps_back_what_saving_takes():
    """$2.2 an hour: 6 minutes for saving are $0.22; 15 more minutes, for which a new node must be useful, $0.55."""
    ledger, _ = fleet()
    budget = Budget(total_usd=10.0, save_minutes=6, useful_minutes=15)
    soft, hard = (10 - 0.77) / 2.2 * HOUR, (10 - 0.22) / 2.2 * HOUR
    assert budget.check(ledger, START + soft - 1) == "ok"
    assert budget.check(ledger, START + soft + 1) == "soft"
    assert budget.check(ledger, START + hard - 1) == "soft"
    assert budget.check(ledger, START + hard + 1) == "hard"
    assert budget.refuses(ledger, 1.0, START + (10 - 3.2 * 21 / 60) / 2.2 * HOUR - 1) is None
    assert budget.refuses(ledger, 1.0, START + (10 - 3.2 * 21 / 60) / 2.2 * HOUR + 1)


def enforce(ledger, market, now, log, busy=True, budget=Budget(total_usd=10.0)):  # noqa: B008
    return budget.enforce(
        ledger,
        now,
        {"vast": Kept(market, ledger, budget)},
        is_head=lambda e: "k=h" in e.label,
        tell=lambda *a: log.append(("tell", *a)),
        busy=lambda: busy,
        drain=lambda es: log.append(("drain", [e.id for e in es])),
    )


NOW = START + 4.6 * HOUR  # $10.12 − above the reserve


def test_saves_then_destroys_the_workers_then_the_head(state):  # noqa: F811
    log: list = []
    ledger, market = fleet()
    destroyed = []
    market.destroy = lambda id: (destroyed.append(id), market.rentals.pop(id))
    assert enforce(ledger, market, START + HOUR, log) == "ok" and not log
    assert enforce(ledger, market, NOW, log) == "saving"
    assert log == [("tell", log[0][1], NOW + 240, pytest.approx(2.2))]
    assert "$10.12 of $10.00 are spent" in log[0][1]
    assert enforce(ledger, market, NOW + 100, log) == "saving" and len(market.rentals) == 3
    assert enforce(ledger, market, NOW + 101, log, busy=False) == "destroying"
    assert destroyed == ["1", "2", "9"] and log[-1] == ("drain", ["1", "2"]) and not market.rentals
    told = len(log)
    assert enforce(ledger, market, NOW + 102, log) == "destroying" and len(log) == told


def test_waits_no_longer_than_the_deadline(state):  # noqa: F811
    log: list = []
    ledger, market = fleet()
    enforce(ledger, market, NOW, log)
    assert enforce(ledger, market, NOW + 239, log) == "saving"
    assert enforce(ledger, market, NOW + 240, log) == "destroying" and not market.rentals


class Crash(BaseException):
    """Not caught by any code, like a kill."""


@pytest.mark.parametrize("crash_at", range(12))
def test_a_crash_at_any_point_is_gone_on_from(state, crash_at):  # noqa: F811
    """Each external call fails once, before or after its effect; a new process then completes the shutdown."""
    market = fleet()[1]
    log, calls = [], 0

    def dying(f, after):
        def call(*a):
            nonlocal calls
            calls += 1
            if calls == crash_at // 2 + 1:
                if after:
                    f(*a)
                raise Crash
            return f(*a)

        return call

    after = bool(crash_at % 2)
    market.destroy = dying(lambda id: market.rentals.pop(id, None), after)
    hooks = {
        "tell": dying(lambda *a: log.append(a), after),
        "drain": dying(lambda es: None, after),
        "busy": lambda: False,
    }
    budget = Budget(total_usd=10.0)
    crashed = False
    for i in range(3):
        try:
            ledger = Ledger("c")
            kept = {"vast": Kept(market, ledger, budget)}
            kept["vast"].list()  # the autoscaler does this every few seconds
            budget.enforce(ledger, NOW + i, kept, lambda e: "k=h" in e.label, **hooks)
        except Crash:
            crashed = True
    assert not market.rentals and log and not Ledger("c").living()
    assert crashed == (crash_at // 2 < 5)  # tell, drain, 3 × destroy
    deadline = {a[1] for a in log}
    assert deadline == {NOW + 240}  # jobs that are notified twice get no extra time


def test_the_head_outlives_workers_that_could_not_be_destroyed(state):  # noqa: F811
    ledger, market = fleet()
    real = market.destroy

    def destroy(id):
        if id == "1":
            raise MarketError("500")
        real(id)

    market.destroy = destroy
    with pytest.raises(MarketError):
        enforce(ledger, market, NOW, [], busy=False)
    assert sorted(market.rentals) == ["1", "9"]
    market.destroy = real
    assert enforce(ledger, market, NOW + 5, [], busy=False) == "destroying" and not market.rentals


def test_what_is_on_a_market_that_the_yaml_no_longer_has_keeps_nothing_else_alive(state):  # noqa: F811
    ledger, market = fleet()
    ledger.observe("runpod", [replace(WORKER, market="runpod", id="p")], at=START + 1)
    with pytest.raises(MarketError, match=r"runpod-p can't be destroyed: provider\.markets has no runpod"):
        enforce(ledger, market, NOW, [], busy=False)
    assert sorted(market.rentals) == ["9"]


def test_a_head_shows_life_only_where_it_could_keep_to_the_budget(state, monkeypatch, tmp_path):  # noqa: F811
    """If anything prevents that for long, the watchdog ends the head. A report from Ray doesn't keep a worker alive."""
    beat = tmp_path / "heartbeat"
    beat.touch()
    os.utime(beat, (0, 0))
    monkeypatch.setattr("cluster.node.steward.HEARTBEAT", str(beat))
    monkeypatch.setattr("cluster.node.steward.note_jobs", lambda ledger, gcs: None)
    monkeypatch.setattr("cluster.node.steward.cluster_signals.busy", lambda gcs: False)
    monkeypatch.setattr("cluster.node.steward.cluster_signals.tell", lambda gcs, stop: None)
    monkeypatch.setattr(Steward, "_gcs", lambda self: None)

    def unreachable(*args):
        raise TimeoutError("no GCS")

    monkeypatch.setattr("cluster.node.steward.lost.tell", unreachable)
    ledger, market = fleet()
    budget = Budget(total_usd=10.0)
    steward = Steward(ledger, budget, {"vast": Kept(market, ledger, budget)}, "127.0.0.1:1")
    real, market.destroy = market.destroy, lambda id: (_ for _ in ()).throw(MarketError("500"))
    with pytest.raises(MarketError):
        steward.turn(NOW)
    assert beat.stat().st_mtime == 0
    market.destroy = real
    steward.turn(NOW + 5)
    assert not market.rentals and beat.stat().st_mtime > 0


def test_a_raised_budget_lifts_the_cap(state, monkeypatch):  # noqa: F811
    monkeypatch.setattr("cluster.money.ledger.time.time", lambda: NOW)
    ledger, market = fleet()
    enforce(ledger, market, NOW, [], busy=False)
    ledger = Ledger("c")
    assert Budget(total_usd=10.0).check(ledger, NOW + 1) == "hard"
    assert "Raise it to continue" in Budget(total_usd=10.0).refuses(ledger, 0.001, NOW + 1)
    assert Budget(total_usd=20.0).check(ledger, NOW + 1) == "ok"
    assert ledger.spent(NOW + 99999) == pytest.approx(4.6 * 2.2, abs=0.01)


def test_nothing_is_rented_beyond_the_budget(state):  # noqa: F811
    """Two concurrent rentals can't both use the last of the budget."""
    market, started = Shelf(), threading.Barrier(2)
    kept = Kept(market, Ledger("c"), Budget(per_hour_usd=0.5))

    def rent():
        started.wait()
        try:
            return kept.create(OFFER, ORDER)  # $0.396
        except Taken as e:
            return str(e)

    with ThreadPoolExecutor(2) as pool:
        first, second = sorted([f.result() for f in [pool.submit(rent), pool.submit(rent)]], key=len)
    assert first == "1" and second == "$0.792 an hour with this rental, but budget.per_hour_usd is 0.5"
    assert [e.id for e in Ledger("c").entries()] == ["1"] and len(kept.list()) == 1
    kept.destroy("1")
    assert not Ledger("c").living() and Ledger("c").polled()


def test_hours_end_a_cluster_as_dollars_do(state):  # noqa: F811
    """Counted from its first rental, even after that has ended; raising the cap lifts the limit."""
    log: list = []
    ledger, market = fleet()
    budget, end = Budget(max_hours=8, save_minutes=6, useful_minutes=15), START + 8 * HOUR
    ledger.observe("vast", [HEAD, replace(WORKER, id="1")], at=START + HOUR)  # 2 has gone
    assert budget.check(ledger, end - 22 * 60) == "ok" and budget.check(ledger, end - 20 * 60) == "soft"
    assert "of budget.max_hours 8 only 20 minutes are left" in budget.refuses(ledger, 0.1, end - 20 * 60)
    at = end - 5 * 60
    market.rentals.pop("2")
    assert enforce(ledger, market, at, log, budget=budget) == "saving"
    assert log == [
        (
            "tell",
            "budget.max_hours: the 8 hours are over, except for the time reserved for saving.",
            at + 288,
            pytest.approx(1.2),
        )
    ]
    assert enforce(ledger, market, at + 1, log, busy=False, budget=budget) == "destroying" and not market.rentals
    ledger = Ledger("c")
    assert (
        budget.refuses(ledger, 0.1, at)
        == "budget.max_hours of 8 was reached, and all rentals were ended. Raise it to continue"
    )
    assert Budget(max_hours=9).check(ledger, at) == "ok" and Budget().check(ledger, at) == "ok"
