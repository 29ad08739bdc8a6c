"""The cost of each job and node on a hand-written history of a cluster, to the cent."""

import json
import time
from dataclasses import replace

import pytest

from cluster import cost
from cluster.__main__ import main
from cluster.money.ledger import Ledger
from tests.cluster.test_ledger import OFFER, ORDER, RENTAL, Shelf, state  # noqa: F401

T = 1_000_000.0
H = 3600.0
HEAD = replace(
    RENTAL,
    id="9",
    label="shoestring/c;k=h",
    usd_per_hour=0.1,
    disk_usd_per_hour=0.0,
    created=T,
    started=T,
    spot=False,
    count=0,
)
A = replace(
    RENTAL,
    id="1",
    label="shoestring/c;k=w",
    usd_per_hour=1.0,
    disk_usd_per_hour=0.0,
    created=T,
    started=T,
    gpu="T4",
    count=1,
)
B = replace(A, id="2")


@pytest.fixture
def life(state, monkeypatch):  # noqa: F811
    """Head and two workers, from T on. sft runs on both from 1 h to 3 h and saves at 1:30; B is lost at 2 h, sft continues on A and saves
    at 2:30. eval runs from 3 h to 4 h. A leaves at 5 h."""
    ledger = Ledger("c")

    def at(hours):
        monkeypatch.setattr("cluster.money.ledger.time.time", lambda: T + hours * H)

    def job(key, hours, **fields):
        at(hours)
        ledger.note("job", key, **fields)

    def listed(hours, *rentals):
        ledger.observe("vast", list(rentals), T + hours * H)

    sft = {
        "id": "1",
        "entrypoint": "python jobs/sft.py --config x",
        "began": T + H,
        "ended": None,
        "stage": "sft",
        "run": "/r/sft",
    }
    training = sft | {"training_began": T + H, "max_steps": 100}
    listed(0, replace(A, state="starting", started=None), replace(B, state="starting", started=None), HEAD)
    listed(0.5, replace(A, started=T + H / 2), replace(B, started=T + H / 2), HEAD)
    job("sft", 1, **sft)
    job("sft", 1, **training, nodes=["vast-1", "vast-2"], saved=None, step=0)
    job("sft", 1.5, **training, nodes=["vast-1", "vast-2"], saved=T + 1.5 * H, step=10)
    listed(1.9, replace(A, started=T + H / 2), replace(B, started=T + H / 2), HEAD)
    listed(2, replace(A, started=T + H / 2), replace(B, state="lost", started=None), HEAD)
    job("sft", 2, **training, nodes=["vast-1"], saved=None, step=10)
    job("sft", 2.5, **training, nodes=["vast-1"], saved=T + 2.5 * H, step=40)
    job("sft", 3, **training | {"ended": T + 3 * H}, nodes=["vast-1"], saved=T + 3 * H, step=100)
    job("eval", 3, id="2", entrypoint="python jobs/eval.py", began=T + 3 * H, ended=None)
    job("eval", 4, id="2", entrypoint="python jobs/eval.py", began=T + 3 * H, ended=T + 4 * H)
    listed(5, HEAD)
    return ledger


def test_each_dollar_goes_somewhere(life):
    c = cost.costs(life, T + 5 * H)
    # A ran from 0:30 to 5:00, B from 0:30 to 2:00, the head for all five hours.
    assert {n.node: pytest.approx(n.usd) for n in c.nodes} == {"vast-1": 4.5, "vast-2": 1.5, "vast-9": 0.5}
    sft, evaluation = c.jobs
    assert sft.usd == pytest.approx(2.0 + 1.0 + 0.2)  # A for 2 h, B for 1, the head for 2
    assert evaluation.usd == pytest.approx(1.0 + 0.1)
    assert sft.lost_usd == pytest.approx(0.5 + 0.5)  # A and B from 1:30 to 2:00
    assert c.stages == {"sft": pytest.approx(3.2), "eval": pytest.approx(1.1)}
    idle = {n.node: pytest.approx(n.idle_usd) for n in c.nodes}
    assert idle == {"vast-1": 0.5 + 1.0, "vast-2": 0.5, "vast-9": 0.2}
    assert sum(n.idle_usd + n.starting_usd for n in c.nodes) + sft.usd + evaluation.usd == pytest.approx(c.usd) == 6.5
    assert c.wasted == pytest.approx((1.5 + 0.5 + 0.2 + 1.0) / 6.5)
    assert (sft.stage, evaluation.stage, sft.step, sft.to_finish_usd) == ("sft", "eval", 100, None)


def test_what_finishing_costs_is_told_from_the_runs_own_speed(state, tmp_path):  # noqa: F811
    from lib.run import Run

    run = Run(str(tmp_path / "run"))
    run.write_text(
        "metrics.jsonl", "".join(json.dumps({"step": s, "loss": 1.0, "time": T + 36 * s}) + "\n" for s in range(1, 51))
    )
    ledger = Ledger("c")
    ledger.observe("vast", [A], T + 1)
    job = {
        "id": "1",
        "entrypoint": "python jobs/sft.py",
        "began": T,
        "ended": T + 1800,
        "stage": "sft",
        "run": run.path,
    }
    ledger.note("job", "k", **job, nodes=["vast-1"], training_began=T, saved=T + 1800, step=50, max_steps=100)
    (row,) = cost.costs(ledger, T + 1800).jobs
    assert row.to_finish_usd == pytest.approx(50 * 36 / 3600 * 1.0)


def test_two_jobs_at_a_time_share(state):  # noqa: F811
    ledger = Ledger("c")
    ledger.observe("vast", [A], T + 1)
    ledger.observe("vast", [A], T + 4 * H)
    for key, began, ended in (("a", 0, 4), ("b", 2, 4)):
        ledger.note("job", key, id=key, entrypoint=f"python {key}.py", began=T + began * H, ended=T + ended * H)
    a, b = cost.costs(ledger, T + 4 * H).jobs
    assert (a.usd, b.usd) == (pytest.approx(3.0), pytest.approx(1.0))


def test_the_command(life, capsys, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: T + 5 * H)
    assert cost.main(["c"]) == 0
    text = capsys.readouterr().out
    assert "c: $6.50, 49% of it wasted" in text and "/r/sft" in text and "vast-2" in text and "1 × T4, spot" in text
    assert cost.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["usd"] == pytest.approx(6.5)
    assert cost.main(["cc"]) == 2
    assert "Nearest: c." in capsys.readouterr().err


def test_nothing_yet(state, capsys):  # noqa: F811
    assert cost.main([]) == 0
    assert capsys.readouterr().out == "Nothing was ever rented from this machine.\n"


def test_a_damaged_ledger_is_named(state, capsys):  # noqa: F811
    file = state / "c" / "ledger.jsonl"
    file.parent.mkdir()
    file.write_text("{half\n{}\n")
    assert main(["cost"]) == 1
    assert (
        f"python -m cluster cost: {file} is damaged" in (said := capsys.readouterr().err) and "repair or remove" in said
    )


def test_traffic_is_estimated_and_not_counted(state, capsys, monkeypatch):  # noqa: F811
    market, ledger = Shelf(), Ledger("c")
    id = ledger.rent(market, replace(OFFER, download_usd_per_gb=0.02), ORDER)
    asked = ledger.entry("vast", id).asked
    monkeypatch.setattr(time, "time", lambda: asked + H)
    ledger.observe("vast", [replace(market.rentals[id], created=asked, started=asked)], asked + H)
    assert cost.main(["c"]) == 0
    said = capsys.readouterr().out
    assert (
        "c: $0.40" in said
        and "not counted: traffic; the set-up of these nodes (3.7 GB each) was about $0.07 more" in said
    )
