"""Decides at each report whether a trial goes on: Ray Tune's schedulers, rebuilt from the journal when a search goes on.

The schedulers see stand-ins with a trial's number instead of Tune's trials, whose ids differ at each start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tune.settings import Settings

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

LONGEST = 10**9
"""Steps that no trial reaches; a trial ends where its job does."""


@dataclass(frozen=True)
class StandIn:
    """For a trial of Tune."""

    trial_id: str


class NoOthers:
    """For Tune's controller, of which MedianStoppingRule asks whether another trial waits for the place of this one. Trials are never
    paused here."""

    @staticmethod
    def get_live_trials() -> list[Any]:
        return []


class Stopping:
    """A scheduler that is told the events of the journal. Trials that start or confirm a search are never stopped."""

    def __init__(self, settings: Settings, mode: str):
        self.settings = settings
        self.scheduler = _scheduler(settings, mode)
        self.known = set[int]()

    def event(self, row: dict[str, Any]) -> bool:
        """Tells the scheduler one event of the journal. Returns whether the trial it is about should stop."""
        import numpy as np

        if "trial" not in row:
            return False
        trial: Any = StandIn(f"{row['trial']:06d}")
        controller: Any = NoOthers
        if row["event"] == "proposed" and row["role"] == "search":
            self.known.add(row["trial"])
            before = np.random.get_state()
            np.random.seed(np.random.SeedSequence([self.settings.seed, row["trial"], 1]).generate_state(1))
            self.scheduler.on_trial_add(controller, trial)  # draws its bracket from numpy's global generator
            np.random.set_state(before)
        elif row["event"] == "reported" and self.settings.scheduler == "pbt":
            return row["trial"] in self.known  # at its first report a generation ends
        elif row["event"] == "reported" and row["trial"] in self.known and self.settings.curve in row["row"]:
            return bool(self.scheduler.on_trial_result(controller, trial, row["row"]) == self.scheduler.STOP)
        return False


def _scheduler(settings: Settings, mode: str) -> TrialScheduler:
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule

    shared: dict[str, Any] = {
        "time_attr": "step",
        "metric": settings.curve,
        "mode": settings.curve_mode(mode),
        "grace_period": settings.every,
    }
    if settings.scheduler == "median":
        return MedianStoppingRule(**shared)
    if settings.scheduler in ("none", "pbt"):
        return FIFOScheduler()  # type: ignore[no-untyped-call]  # Ray has few types here
    brackets = 3 if settings.scheduler == "hyperband" else 1
    return AsyncHyperBandScheduler(**shared, max_t=LONGEST, reduction_factor=settings.halving, brackets=brackets)
