"""What a search may claim: simulated searches in which all settings are equally good, or one is better."""

import numpy as np
import pytest

from tune import confirm
from tune.journal import Trial
from tune.settings import Settings

S = Settings(confirm=3, finalists=2)
BLOCKS, TOKENS = 8, 50


def searched(rng, gain: float = 0.0, trials: int = 20) -> tuple[list[Trial], dict]:
    """A search whose best trial is truly better than the start by `gain` nats per token. Losses vary by 0.05 with the seed, by 0.05 with the
    setting and the rows of the choice, and by 0.1 with setting, seed and block of rows."""
    found, batches = [], {}

    def add(role: str, loss: float, of=None, seed=None) -> Trial:
        t = Trial(
            len(found),
            {"x": len(found)},
            role,
            of,
            seed,
            status="finished",
            reports=[{"step": 10, "eval_loss": loss, "seconds": 1.0}],
        )
        found.append(t)
        return t

    start = add("start", 2.0 + rng.normal(0, 0.07))
    lucky = [add("search", 2.0 - gain * (i == 0) + rng.normal(0, 0.07)) for i in range(trials)]
    of_rows = {t.number: rng.normal(0, 0.05, BLOCKS) for t in (start, *lucky)}
    for t in (start, *confirm.finalists(found, S, "min")):
        for seed in (1, 2, 3):
            true = 2.0 - gain * (t is lucky[0])
            losses = true + rng.normal(0, 0.05) + of_rows[t.number] + rng.normal(0, 0.1, BLOCKS)
            again = add("confirm", float(losses.mean()), t.number, seed)
            batches[again.number] = [[float(x) * TOKENS, TOKENS] for x in losses]
    return found, batches


def test_where_all_settings_are_equal_at_most_5_of_100_searches_claim_a_winner():
    rng = np.random.default_rng(0)
    claims = selected = 0
    for _ in range(100):
        trials, batches = searched(rng)
        found = confirm.confirmed(trials, S, "min", batches)
        assert len(found) == 2
        claims += any(c.better for c in found)
        selected += sum(c.in_search for c in found) / len(found)
    assert claims <= 5
    assert selected / 100 > 0.1  # the searches themselves show a gain, all of which is luck


def test_a_true_gain_is_confirmed():
    rng = np.random.default_rng(1)
    claims = [any(c.better for c in confirm.confirmed(*_with(searched(rng, gain=0.5)))) for _ in range(20)]
    assert sum(claims) >= 18


def _with(found):
    trials, batches = found
    return trials, S, "min", batches


def test_a_gain_is_positive_whether_lower_or_higher_is_better():
    trials, _ = searched(np.random.default_rng(2), gain=0.5)
    (a, *_), low = confirm.confirmed(trials, S, "min", {}), -1
    for t in trials:
        t.reports[-1]["eval_loss"] *= low
    (b, *_) = confirm.confirmed(trials, S, "max", {})
    assert a.gain.value > 0.2 and (a.gain.value, a.gain.low, a.gain.high) == pytest.approx(
        (b.gain.value, b.gain.low, b.gain.high)
    )
    assert "fixed rows" in a.gain.method and a.in_search == pytest.approx(b.in_search)


def test_only_seeds_with_which_both_have_finished_count():
    trials, batches = searched(np.random.default_rng(3))
    lost = next(t for t in trials if t.role == "confirm" and t.of == 0 and t.seed == 2)
    lost.status = "running"
    assert all(c.gain.n == 2 for c in confirm.confirmed(trials, S, "min", batches))


def test_batches_of_other_rows_are_not_paired():
    trials, batches = searched(np.random.default_rng(4))
    batches[max(batches)][0][1] += 1
    assert {c.gain.method for c in confirm.confirmed(trials, S, "min", batches)} >= {
        "paired t over 3 seeds and fixed rows"
    }


def test_without_finished_trials_there_is_nothing_to_confirm():
    trials = [Trial(0, {}, "start", status="finished", reports=[{"step": 1, "eval_loss": 1.0, "seconds": 1.0}])]
    assert confirm.finalists(trials, S, "min") == [] and confirm.confirmed(trials, S, "min", {}) == []
