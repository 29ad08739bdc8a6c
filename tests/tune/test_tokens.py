"""TPE with ASHA against random search on simulated trainings; benchmarks/search.py compares them on real ones."""

import math
import statistics

from tune import space
from tune.journal import Trial
from tune.proposals import propose
from tune.settings import Settings
from tune.stopping import Stopping

SPACE, _ = space.read(
    {"train.learning_rate": {"loguniform": [1e-5, 1e-1]}, "model.peft.r": {"choice": [1, 2, 4, 8, 16, 32]}}
)
STEPS, EVERY = 40, 4


def loss(settings: dict, step: int) -> float:
    """Best at a learning rate of 1e-3 and rank 32; a setting's rank among the others is roughly settled after a few steps."""
    best = 2.0 + 0.3 * (math.log10(settings["train.learning_rate"]) + 3) ** 2
    return best + 0.05 * (5 - math.log2(settings["model.peft.r"])) + math.exp(-step / 10)


def run(s: Settings, trials: int, until: float = -math.inf) -> tuple[float, int]:
    """Trains one trial after the other. Returns (the best loss, the steps of all trials until a report has at most the loss `until`)."""
    stopping, done, best, steps = Stopping(s, "min"), list[Trial](), math.inf, 0
    for number in range(trials):
        t = Trial(number, propose(SPACE, s, "min", done, number))
        stopping.event({"event": "proposed", "trial": number, "role": "search"})
        done.append(t)
        while t.status == "running":
            row = {"step": t.step + EVERY, "eval_loss": loss(t.settings, t.step + EVERY)}
            t.reports.append(row)
            best, steps = min(best, row["eval_loss"]), steps + EVERY
            stop = stopping.event({"event": "reported", "trial": number, "row": row})
            t.status = "stopped" if stop else "finished" if t.step == STEPS else "running"
            if best <= until:
                return best, steps
    return best, steps


def test_tpe_with_asha_reaches_the_best_of_20_random_trials_with_a_third_of_their_steps():
    ratios = []
    for seed in range(8):
        best, steps = run(Settings(search="random", seed=1000 + seed), 20)
        assert steps == 20 * STEPS
        _, fewer = run(Settings(search="optuna", scheduler="asha", every=EVERY, seed=seed), 60, best)
        ratios.append(fewer / steps)
    print(sorted(round(r, 2) for r in ratios))
    assert statistics.median(ratios) <= 1 / 3
