"""The generations of population based training."""

import pytest

from tune import space
from tune.journal import Trial
from tune.population import following
from tune.settings import Budget, Settings

SPACE, _ = space.read(
    {"train.learning_rate": {"loguniform": [1e-4, 1e-1]}, "train.weight_decay": {"choice": [0.1, 0.2, 0.4]}}
)
S = Settings(scheduler="pbt", budget=Budget(trials=8), every=10)


def generation(trials: list[Trial], values: list[float], number: int, last: bool = False) -> None:
    """Adds the trials of generation `number`; the one of member m ends with values[m], or fails if that is None."""
    for _ in values:
        found = following(SPACE, S, "min", trials)
        assert found == following(SPACE, S, "min", trials), "it depends on the trials alone"
        t = Trial(len(trials), role="search", **found)
        assert (t.generation, t.member) == (number, len(trials) % len(values))
        trials.append(t)
    for t, value in zip(trials[-len(values) :], values, strict=True):
        t.status = "failed" if value is None else "finished" if last else "stopped"
        t.reports = [] if value is None else [{"step": 10 * (number + 1), "eval_loss": value, "seconds": 1.0}]


def test_the_worst_quarter_goes_on_from_the_best_quarter_with_other_settings():
    trials: list[Trial] = []
    generation(trials, [5.0, 1.0, 3.0, 8.0, 2.0, 7.0, 4.0, 6.0], 0)
    generation(trials, [1.0] * 8, 1)
    parents = {t.member: t.parent for t in trials[8:]}
    assert {m: p for m, p in parents.items() if m not in (3, 5)} == {m: m for m in (0, 1, 2, 4, 6, 7)}
    assert {parents[3], parents[5]} <= {1, 4}
    for member in (3, 5):
        t, parent = trials[8 + member], trials[parents[member]]
        assert t.settings["train.learning_rate"] == parent.settings["train.learning_rate"]
        (step, rate), *more = t.settings["schedule.learning_rate"].items()
        assert step == "10" and not more and 1e-4 <= rate <= 1e-1
        assert t.settings["schedule.weight_decay"]["10"] in (0.1, 0.2, 0.4)
    assert all(t.settings == trials[t.parent].settings for t in trials[8:] if t.member not in (3, 5))


def test_changes_of_a_lineage_add_up():
    trials: list[Trial] = []
    for number in range(6):
        generation(trials, [float(m) for m in range(8)], number)
    last = trials[-1]
    steps = [int(step) for step in last.settings["schedule.learning_rate"]]
    assert steps == sorted(set(steps)) and steps[-1] == 50
    rates = [last.settings["train.learning_rate"], *last.settings["schedule.learning_rate"].values()]
    assert (
        rates[-1] / rates[-2] == pytest.approx(0.8)
        or rates[-1] / rates[-2] == pytest.approx(1.2)
        or 1e-4 <= rates[-1] <= 1e-1
    )


def test_a_member_that_failed_goes_on_from_another_and_the_search_ends_with_the_job():
    trials: list[Trial] = []
    generation(trials, [None, 1.0, None, 3.0, None, 2.0, 4.0, None], 0)
    generation(trials, [1.0] * 8, 1, last=True)
    assert {trials[8 + m].parent for m in (0, 2, 4, 7)} <= {1, 5}
    assert following(SPACE, S, "min", trials) is None


def test_after_a_kill_every_key_still_changes():
    """ray#54755: a restored PBT no longer mutates some keys. Here, whenever the journal is read again, the same changes come next."""
    trials: list[Trial] = []
    for number in range(4):
        generation(trials, [float(m) for m in range(8)], number)
    again = [Trial(**vars(t)) for t in trials]  # as read from the journal
    for t in again[-8:]:
        t.status = "stopped"
    late = {k for t in trials[24:] for k in t.settings if k.startswith("schedule.") and "30" in t.settings[k]}
    assert late == {"schedule.learning_rate", "schedule.weight_decay"}
    assert following(SPACE, S, "min", again) == following(SPACE, S, "min", trials)


def test_a_generation_waits_for_all_of_the_one_before():
    trials: list[Trial] = []
    generation(trials, [float(m) for m in range(8)], 0)
    trials[3].status = "running"
    assert following(SPACE, S, "min", trials) is None


def test_if_all_members_failed_the_search_ends():
    trials: list[Trial] = []
    generation(trials, [None] * 8, 0)
    assert following(SPACE, S, "min", trials) is None
