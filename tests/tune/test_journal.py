"""The record of a search, and the schedulers that are rebuilt from it."""

import random

import pytest

from lib.run import Run
from tune.journal import Journal
from tune.settings import Settings
from tune.stopping import Stopping


def filled(run: Run) -> Journal:
    journal = Journal(run)
    journal.add("start")
    for number in range(2):
        assert journal.propose({"train.learning_rate": 10.0**-number}, "search").number == number
        journal.add(
            "reported", trial=number, row={"step": 10, "eval_loss": 2.0 - number, "tokens": 500, "seconds": 1.5}
        )
    journal.add("ended", trial=0, status="stopped", why="asha at step 10", seconds=2.0)
    return journal


def test_a_journal_reads_what_it_wrote(tmp_path):
    wrote, read = filled(Run(tmp_path)), Journal(Run(tmp_path))
    assert read.trials == wrote.trials and read.events == wrote.events
    assert [t.status for t in read.of_role("search")] == ["stopped", "running"]
    stopped = read.trials[0]
    assert (stopped.last("eval_loss"), stopped.step, stopped.tokens, stopped.seconds) == (2.0, 10, 500, 2.0)
    assert read.trials[1].seconds == 1.5


def test_a_line_that_a_kill_cut_off_is_taken_back(tmp_path):
    filled(Run(tmp_path))
    file = tmp_path / "journal.jsonl"
    whole = file.read_text()
    file.write_text(whole[:-9])
    journal = Journal(Run(tmp_path))
    assert [t.status for t in journal.trials.values()] == ["running", "running"]
    assert file.read_text() == whole[:-9], "reading changes nothing"
    journal.add("start")
    assert file.read_text().splitlines()[:-1] == whole.splitlines()[:-1]
    assert Journal(Run(tmp_path)).trials == journal.trials


def test_a_damaged_line_is_named(tmp_path):
    filled(Run(tmp_path))
    file = tmp_path / "journal.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "{", *lines[2:], ""]))
    with pytest.raises(ValueError, match=r"journal.jsonl:2 is damaged"):
        Journal(Run(tmp_path))


def test_hours_are_counted_over_all_starts(tmp_path, monkeypatch):
    clock = iter([0.0, 100.0, 5000.0, 5030.0])
    monkeypatch.setattr("time.time", lambda: next(clock))
    for _ in range(2):
        journal = Journal(Run(tmp_path))
        journal.add("start")
        journal.add("noted")
    assert Journal(Run(tmp_path)).spent == 130.0


def search(stopping: Stopping, seed: int = 0) -> tuple[list[dict], list[bool]]:
    """A search of 30 trials of 9 reports, 3 at a time, whose values are random. Returns (its events, what was decided at each)."""
    draw, rows, stops, running, started = random.Random(seed), [], [], {}, 0
    while started < 30 or running:
        if started < 30 and len(running) < 3:
            rows.append({"event": "proposed", "trial": started, "role": "search"})
            running[started], started = 0, started + 1
        else:
            number = draw.choice(sorted(running))
            running[number] += 1
            row = {"step": 10 * running[number], "loss": draw.random()}
            rows.append({"event": "reported", "trial": number, "row": row})
        stops.append(stopping.event(rows[-1]))
        if stops[-1] or (rows[-1]["event"] == "reported" and running[number] == 9):
            del running[number]
    return rows, stops


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
def test_a_scheduler_rebuilt_from_the_journal_decides_as_one_that_was_never_interrupted(scheduler):
    """Ray's Tuner.restore forgets a scheduler's state (ray-project/ray#30838)."""
    settings = Settings(scheduler=scheduler, metric="loss", every=10)
    rows, stops = search(Stopping(settings, "min"))
    assert 5 < sum(stops) < 30
    for cut in range(0, len(rows), 7):
        again = Stopping(settings, "min")
        for row in rows[:cut]:
            again.event(row)
        assert [again.event(row) for row in rows[cut:]] == stops[cut:]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_asha_stops_a_trial_that_is_worse_than_the_best_third_of_those_before_it(mode):
    import numpy as np

    stopping = Stopping(Settings(scheduler="asha", metric="loss", every=10, halving=3.0), mode)
    losses = [((number * 37) % 60) / 60 for number in range(60)]
    for number, loss in enumerate(losses):
        stopping.event({"event": "proposed", "trial": number, "role": "search"})
        stops = stopping.event({"event": "reported", "trial": number, "row": {"step": 10, "loss": loss}})
        before = losses[:number]
        worse = bool(before) and (
            loss > np.percentile(before, 100 / 3) if mode == "min" else loss < np.percentile(before, 200 / 3)
        )
        assert stops == worse


def test_without_a_scheduler_no_trial_stops():
    assert not any(search(Stopping(Settings(metric="loss"), "min"))[1])


def test_the_start_and_confirmations_are_never_stopped():
    stopping = Stopping(Settings(scheduler="asha", metric="loss", every=10), "min")
    for number, role in enumerate(("search", "start", "confirm")):
        stopping.event({"event": "proposed", "trial": number, "role": role})
        row = {"step": 10, "loss": float(number)}
        assert not stopping.event({"event": "reported", "trial": number, "row": row})
