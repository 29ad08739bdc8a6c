"""The ledger's arithmetic on hand-written rentals; and no entry is lost, whatever dies when."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace

import pytest

from cluster.market.base import Market, MarketError, Offer, Order, Rental, Taken
from cluster.money.ledger import UNANSWERED_S, UNLISTED_S, Ledger, cluster_of, clusters

OFFER = Offer("vast", "7", "m1", "RTX 4090", 1, 24.0, True, usd_per_hour=0.36, disk_usd_per_hour=0.036)
ORDER = Order("shoestring/c;k=worker", "img", 20.0, 0.36, "ssh-ed25519 A")
RENTAL = Rental("vast", "1", "shoestring/c;k=worker", "running", "", True, 0.36, 0.036, created=1000.0, started=1100.0)


class Shelf(Market):
    """A market in memory."""

    name = "vast"

    def __init__(self, error: Exception | None = None, kept: bool = True):
        self.rentals, self.error, self.kept = {}, error, kept

    def offers(self, want):
        return [OFFER]

    def create(self, offer, order):
        id = str(len(self.rentals) + 1)
        if self.kept:
            self.rentals[id] = replace(RENTAL, id=id, label=order.label)
        if self.error:
            raise self.error
        return id

    def list(self):
        return list(self.rentals.values())

    def destroy(self, id):
        self.rentals.pop(id, None)

    def label(self, id, label):
        self.rentals[id] = replace(self.rentals[id], label=label)


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_STATE", str(tmp_path))
    return tmp_path


def usd(ledger, now):
    """Returns the cost, after checking that a ledger read again from the file gives the same."""
    assert Ledger(ledger.cluster).spent(now) == pytest.approx(ledger.spent(now), abs=1e-12)
    return pytest.approx(ledger.spent(now), abs=1e-9)


def test_a_life_to_the_cent():
    """The disk is charged while it exists, the machine while it runs, by the market's times and prices."""
    ledger = Ledger("c")
    ledger.observe("vast", [replace(RENTAL, state="starting", started=None)], at=1010)
    assert usd(ledger, 1100) == 100 * 0.036 / 3600
    ledger.observe("vast", [RENTAL], at=1105)
    assert usd(ledger, 2100) == 1100 * 0.036 / 3600 + 1000 * 0.36 / 3600
    ledger.observe("vast", [RENTAL], at=2100)
    # The start is unknown: it is charged since it was last seen.
    ledger.observe("vast", [replace(RENTAL, usd_per_hour=0.72)], at=2110)
    ledger.observe("vast", [replace(RENTAL, state="lost", why="outbid")], at=2200)
    assert ledger.rate() == 0.036
    ledger.observe("vast", [], at=2300)
    assert usd(ledger, 9999) == 1300 * 0.036 / 3600 + 1000 * 0.36 / 3600 + 100 * 0.72 / 3600
    assert ledger.rate() == 0 and not ledger.living()
    assert ledger.spent(2150, since=2100) == pytest.approx(50 * (0.72 + 0.036) / 3600)
    assert [e.node for e in ledger.entries()] == ["vast-1"]


def test_an_outbid_machine_that_goes_again_isn_t_charged_for_the_time_between():
    ledger = Ledger("c")
    ledger.observe("vast", [RENTAL], at=1200)
    for at in (1300, 1400):
        ledger.observe("vast", [replace(RENTAL, state="lost", disk_usd_per_hour=0.0)], at=at)
    ledger.observe("vast", [replace(RENTAL, disk_usd_per_hour=0.0)], at=1410)
    e = ledger.entries()[0]
    machine = [(c.since, c.until) for c in e.charges if c.what == "machine"]
    assert machine == [(1100, 1300), (1400, None)]


def test_a_rental_is_charged_before_the_market_lists_it_and_then_by_its_list():
    ledger, market = Ledger("c"), Shelf()
    id = ledger.rent(market, OFFER, ORDER)
    e = ledger.entry("vast", id)
    assert e.rental is None and ledger.spent(e.answered + 3600) == pytest.approx(0.396)
    assert ledger.rate() == pytest.approx(0.396)
    starting = replace(market.list()[0], state="starting", usd_per_hour=0.0, created=e.asked + 1, started=None)
    ledger.observe("vast", [starting], at=e.answered + 5)
    assert ledger.spent(e.asked + 3601) == pytest.approx(0.036)
    assert ledger.rate() == pytest.approx(0.396)  # what it will cost, though RunPod reports 0 until it runs


def test_other_clusters_rentals_are_not_ours():
    ledger = Ledger("c")
    ledger.observe("vast", [replace(RENTAL, label="shoestring/cc;k=worker")], at=1200)
    assert not ledger.entries() and cluster_of("shoestring/cc;k=head") == "cc" and cluster_of("shoestring/c/x") == "c"
    assert clusters() == ["c"]


def test_refused_costs_nothing():
    ledger = Ledger("c")
    with pytest.raises(Taken):
        ledger.rent(Shelf(Taken("gone"), kept=False), OFFER, ORDER)
    (e,) = ledger.entries()
    assert not e.living and e.why == "gone" and ledger.spent(e.asked + 99999) == 0


def test_a_create_whose_answer_was_lost_is_found_by_its_label():
    ledger, market = Ledger("c"), Shelf(MarketError("time-out"))
    with pytest.raises(MarketError):
        ledger.rent(market, OFFER, ORDER)
    (e,) = ledger.living()
    assert e.id is None and ledger.rate() == pytest.approx(0.396)  # it may exist, so it is counted
    assert ledger.orphans(market.list()) == market.list()
    ledger.observe("vast", market.list(), at=e.asked + 5)
    (e,) = Ledger("c").living()
    assert (e.id, e.answered) == ("1", None) and ledger.orphans(market.list())
    ledger.destroy(market, "1")
    assert not ledger.living() and not market.rentals


def test_a_create_that_nobody_ever_lists_is_given_up():
    ledger = Ledger("c")
    with pytest.raises(MarketError):
        ledger.rent(Shelf(MarketError("time-out"), kept=False), OFFER, ORDER)
    (e,) = ledger.living()
    ledger.observe("vast", [], at=e.asked + UNLISTED_S - 1)
    assert ledger.living()
    ledger.observe("vast", [], at=e.asked + UNLISTED_S + 1)
    assert not ledger.living() and ledger.spent(e.asked + 99999) == 0
    # If it appears after all, it is listed again.
    ledger.observe("vast", [replace(RENTAL, label=e.label)], at=e.asked + UNLISTED_S + 100)
    assert [x.id for x in ledger.living()] == ["1"] and len(ledger.entries()) == 1


def _rent_and_die(state):
    os.environ["SHOESTRING_STATE"] = str(state)

    class Deadly(Shelf):
        def create(self, offer, order):
            (state / "market.json").write_text(json.dumps(order.label))  # it is rented …
            os.kill(os.getpid(), signal.SIGKILL)  # … but the reply never arrives

    Ledger("c").rent(Deadly(), OFFER, ORDER)


def test_killed_between_intent_and_id(state, monkeypatch):
    p = multiprocessing.get_context("spawn").Process(target=_rent_and_die, args=(state,))
    p.start()
    p.join()
    assert p.exitcode == -signal.SIGKILL
    ledger, label = Ledger("c"), json.loads((state / "market.json").read_text())
    (e,) = ledger.living()
    assert e.id is None and e.label == label and ledger.rate() == pytest.approx(0.396)
    listed = [replace(RENTAL, label=label)]
    assert not ledger.orphans(listed)  # as far as this process can tell, the create may still be in progress elsewhere
    monkeypatch.setattr("cluster.money.ledger.time.time", lambda: e.asked + UNANSWERED_S + 1)
    assert ledger.orphans(listed) == listed


def test_a_list_that_began_before_a_change_doesn_t_undo_it():
    ledger, market = Ledger("c"), Shelf()
    id = ledger.rent(market, OFFER, ORDER)
    e = ledger.entry("vast", id)
    before = market.list()
    ledger.observe("vast", [], at=e.answered - 1)  # requested before it was rented
    assert ledger.entry("vast", id).living
    ledger.observe("vast", before, at=e.answered + 1)
    ledger.destroy(market, id)
    ledger.observe("vast", before, at=ledger.entry("vast", id).ended - 0.001)
    assert not ledger.entry("vast", id).living


def test_one_list_without_it_doesn_t_lose_it():
    """Markets are eventually consistent: when it reappears, the gap is charged too."""
    ledger = Ledger("c")
    for at, rentals in ((1200, [RENTAL]), (1210, []), (1220, [RENTAL])):
        ledger.observe("vast", rentals, at=at)
    assert ledger.living() and usd(ledger, 1300) == 300 * 0.036 / 3600 + 200 * 0.36 / 3600


def test_a_half_written_last_line_is_cut_off(state):
    ledger = Ledger("c")
    ledger.observe("vast", [RENTAL], at=1200)
    file = state / "c" / "ledger.jsonl"
    whole = file.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1])):
        file.write_bytes(whole[:-cut])
        again = Ledger("c")
        assert len(again.living()) == 1 or cut > len(whole) // 2
        again.observe("vast", [RENTAL], at=1210)
        assert usd(again, 2100) == 1100 * 0.036 / 3600 + 1000 * 0.36 / 3600
        assert all(json.loads(line) for line in file.read_text().splitlines())


def test_another_process_reads_the_same_to_the_second():
    """Not every poll is written, but what was seen, and until when, is."""
    ledger = Ledger("c")
    for i in range(40):
        ledger.observe("vast", [RENTAL], at=1200 + 3 * i)
    assert 1317 - 15 <= Ledger("c").polled() <= 1317
    ledger.observe("vast", [replace(RENTAL, usd_per_hour=3.6)], at=1320)
    assert usd(ledger, 1317) == (217 * 0.36 + 317 * 0.036) / 3600
    assert usd(ledger, 1417) == (217 * 0.36 + 100 * 3.6 + 417 * 0.036) / 3600
    assert len(ledger.path.read_text().splitlines()) < 15


def test_two_processes_write_one_ledger():
    one, other = Ledger("c"), Ledger("c")
    one.observe("vast", [RENTAL], at=1200)
    other.observe("vast", [RENTAL, replace(RENTAL, id="2", label="shoestring/c;k=head")], at=1201)
    assert [e.id for e in one.entries()] == ["1", "2"]
    other.note("budget", "cap", saved=False)
    assert one.notes("budget")["cap"]["saved"] is False


def test_with_no_head_it_is_charged_no_longer_than_its_watchdog_lets_it_live():
    ledger, market = Ledger("c"), Shelf()
    id = ledger.rent(market, OFFER, ORDER, unattended_s=600)
    t = ledger.entry("vast", id).answered
    ledger.observe("vast", [replace(market.list()[0], created=t, started=t)], at=t + 10)
    ledger.observe("vast", [], at=t + 86400)  # the head was down for a day
    assert ledger.spent(t + 99999) == pytest.approx(670 * 0.396 / 3600)
    assert ledger.entry("vast", id).uncertain_usd() == pytest.approx(660 * 0.396 / 3600)


def test_what_a_rented_head_spent_outlives_it(state, tmp_path, monkeypatch):
    """A laptop rents the head; the head rents a worker and is destroyed with its disk; the laptop and the next head still have
    both costs."""
    store, market = str(tmp_path / "store"), Shelf()

    def machine(name, now):
        monkeypatch.setenv("SHOESTRING_STATE", str(state / name))
        monkeypatch.setattr("cluster.money.ledger.time.time", lambda: now)

    machine("laptop", 999)
    laptop = Ledger("c", store)
    head = laptop.rent(market, OFFER, replace(ORDER, label="shoestring/c;k=h"))
    machine("head", 1500)
    ledger = Ledger("c", store)
    worker = ledger.rent(market, OFFER, ORDER)
    ledger.observe(
        "vast", [replace(r, created=1000.0 if r.id == head else 1500.0, started=1500.0) for r in market.list()], at=1510
    )
    assert {e.id for e in ledger.living()} == {head, worker}
    ledger.send()
    machine("head", 2500)
    ledger.destroy(market, worker)
    ledger.leave(ledger.entry("vast", head))
    spent = ledger.spent(2500)
    assert spent == pytest.approx((1500 * 0.036 + 1000 * 0.36 + 1000 * 0.396) / 3600)
    for name in ("laptop", "next-head"):
        machine(name, 9000)
        again = Ledger("c", None if name == "laptop" else store)  # the laptop remembers the store
        assert again.spent(9000) == pytest.approx(spent) and not again.living() and len(again.entries()) == 2
    again.observe("vast", [], at=9001)
    again.send()
    assert len(list((tmp_path / "store" / "c").glob("*.jsonl"))) == 2
