"""What Ray Tune asks a search: which trial comes next, and whether one goes on. The answers depend on the journal."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from lib.errors import nearest
from tune import confirm, metrics, population
from tune.journal import Journal, Trial
from tune.plan import Plan, directory
from tune.progress import Progress
from tune.proposals import propose
from tune.stopping import Stopping

AGAIN = 20
"""Number of times that a proposal which an earlier trial already had is drawn again."""


class Search(Searcher):
    """What Tune asks for the next trial: the start, the trials of the search, and, once those have ended, the confirmation."""

    def __init__(self, planned: Plan, journal: Journal, show: Progress):
        super().__init__()
        self.planned, self.journal, self.show, self.began = planned, journal, show, time.time()
        self.given = set[int]()
        """Trials that Tune has at the moment."""
        self.numbers: dict[str, int] = {}
        """{Tune's id of a trial: its number}"""
        self.lost = Counter[int]()
        self.stopped = ""
        """Why the search ended before its trials did."""
        self.over = ""
        """Why the search started no more trials."""

    def suggest(self, trial_id: str) -> Any:
        """Returns the configuration of a trial, FINISHED, or None: Tune is to ask again."""
        if self.stopped or self.spent():
            return self.FINISHED
        t = None if self._short_of_confirming() else self._unfinished() or self._new()
        if t is None:
            if any(self.journal.trials[n].role != "confirm" for n in self.given):
                return None  # Tune asks again
            t = self._confirmation()
        if t is None:
            return self.FINISHED
        self.given.add(t.number)
        self.numbers[trial_id] = t.number
        self.show.started(t)
        config = {"number": t.number, "jobs": json.dumps([job.to_dict() for job in self.planned.jobs(t)])}
        if metrics.task_of(self.planned.settings.metric):
            config |= {"search": json.dumps(asdict(self.planned.settings)), "half": self.planned.half(t.role)}
        if t.parent is None:
            return config
        parent = self.journal.trials[t.parent]
        before = f"checkpoints/checkpoint-{parent.step}"
        return config | {
            "run": directory(self.planned.settings.run, parent.number),
            "from": before,
            "tokens": parent.lineage_tokens,
        }

    def _unfinished(self) -> Trial | None:
        """Returns a trial that a kill, a lost process or the budget interrupted."""
        trials = self.journal.trials.values()
        return next(
            (t for t in trials if t.status == "running" and t.role != "confirm" and t.number not in self.given), None
        )

    def _new(self) -> Trial | None:
        """Returns the next trial of the search; None if there are no more, with the reason in `over`."""
        s, searched = self.planned.settings, self.journal.of_role("search")
        if not self.journal.of_role("start"):
            return self.journal.propose({}, "start")
        if s.scheduler == "pbt":
            if found := population.following(self.planned.space, s, self.planned.mode, searched):
                return self.journal.propose(found.pop("settings"), "search", **found)
            self.over = "" if any(t.number in self.given for t in searched) else "all generations have trained"
            return None
        number = len(searched)
        if s.budget.trials is not None and number >= s.budget.trials:
            self.over = f"all {number} trials have run"
            return None
        for again in range(AGAIN):
            settings = propose(self.planned.space, s, self.planned.mode, searched, number, again)
            if settings is None:
                self.over = f"all {number} combinations of the grid have run"
                return None
            if all(settings != t.settings for t in searched):  # the same job computes the same bits
                return self.journal.propose(settings, "search")
        self.over = f"the last {AGAIN} proposals were settings of earlier trials"
        return None

    def _confirmation(self) -> Trial | None:
        """Returns the next run of the confirmation; None if there are no more."""
        s, trials = self.planned.settings, list(self.journal.trials.values())
        best, start = confirm.finalists(trials, s, self.planned.mode), self.journal.of_role("start")
        there = {(t.of, t.seed): t for t in trials if t.role == "confirm"}
        for seed in range(1, s.confirm + 1):
            for t in (*start, *best) if best else ():
                found = there.get((t.number, seed))
                if found is None:
                    return self.journal.propose(t.settings, "confirm", of=t.number, seed=seed)
                if found.status == "running" and found.number not in self.given:
                    return found
        return None

    def _short_of_confirming(self) -> bool:
        """Whether what is left of the budget is needed to confirm the finalists. Then `over` says so."""
        s, done = self.planned.settings, [t.seconds for t in self.journal.trials.values() if t.status == "finished"]
        seconds = max(done, default=0.0) * s.confirm * (s.finalists + 1)
        if seconds and (over := self.spent(seconds)):
            self.over = f"{over}, but for the confirmation"
            return True
        return False

    def spent(self, kept: float = 0.0) -> str:
        """Returns which limit of the budget is reached, or "". kept: seconds of trials that must still be possible."""
        budget = self.planned.settings.budget
        at_once = self.planned.settings.concurrent or 1
        hours = (self.journal.spent + time.time() - self.began + kept / at_once) / 3600
        if budget.hours is not None and hours >= budget.hours:
            return f"budget.hours: {budget.hours:g} h are over"
        usd = self.planned.settings.usd(sum(t.seconds for t in self.journal.trials.values()) + kept)
        if budget.usd is not None and usd >= budget.usd:
            return f"budget.usd: ${budget.usd:g} are spent"
        return ""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Counts lost processes. Tune's own max_failures doesn't cover a process that is lost while it changes from trial to trial."""
        if not error:
            return
        t, allowed = self.journal.trials[self.numbers[trial_id]], self.planned.settings.retries
        self.lost[t.number] += 1
        self.given.discard(t.number)
        self.show.lost(t)
        if 0 <= allowed < self.lost[t.number]:
            self.end(t, "failed", f"its process or node was lost {self.lost[t.number]} times")

    def missing(self, row: dict[str, Any], outcome: str) -> str:
        """Returns what is wrong if a trial doesn't report what it is compared by, "" otherwise. Columns of training may be logged later, at
        its end at the latest, when tasks are measured too."""
        s = self.planned.settings
        needed = {"metric": s.metric} | ({"stop_by": s.curve} if s.scheduler != "none" else {})
        for key, name in needed.items():
            if name not in row and (outcome or name.startswith("eval_")):
                columns = sorted(k for k in row if k not in ("step", "tokens", "seconds"))
                return f"{key}: trials don't report {name}.{nearest(name, columns)} They report {', '.join(columns)}."
        return ""

    def cut_off(self, t: Trial, why: str) -> None:
        """Lets a trial end without an end in the journal: it goes on from its checkpoint when the search does."""
        self.stopped = self.stopped or why
        self.given.discard(t.number)
        self.show.reported(t, why)

    def end(self, t: Trial, status: str, why: str, seconds: float | None = None) -> None:
        """Writes the end of a trial into the journal. seconds: None: those at its last report."""
        self.journal.add(
            "ended", trial=t.number, status=status, why=why, seconds=t.seconds if seconds is None else seconds
        )
        self.given.discard(t.number)
        self.show.reported(t, "")

    def save(self, checkpoint_path: str) -> None:
        """Tune keeps its searcher's state in a file. Here the journal holds it."""
        with open(checkpoint_path, "w") as f:
            f.write("{}")

    def __getstate__(self) -> dict[str, Any]:
        """Tune also pickles its searcher and scheduler, for a restore that a search doesn't use."""
        return {}


class Scheduler(FIFOScheduler):
    """What Tune tells of each report. Writes the journal."""

    def __init__(self, search: Search, stopping: Stopping):
        super().__init__()  # type: ignore[no-untyped-call]  # Ray has few types here
        self.search, self.journal, self.stopping = search, search.journal, stopping

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        number = trial.config["number"]
        if number not in self.stopping.known:  # otherwise it was told when the journal was read
            self.stopping.event({"event": "proposed", "trial": number, "role": self.journal.trials[number].role})

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        t, row = self.journal.trials[trial.config["number"]], json.loads(result["row"])
        if t.status != "running" or t.number not in self.search.given:
            return self.STOP
        outcome, why = row.pop("outcome", ""), row.pop("why", "")
        if row.pop("earlier", False):  # from a job of `before`: it is only charged for
            self.journal.add("earlier", trial=t.number, row=row)
            if over := self.search.spent():
                self.search.cut_off(t, over)
            return self.STOP if over else self.CONTINUE
        stop, before = False, t.step if t.reports or t.parent is None else self.journal.trials[t.parent].step
        # A trial that goes on reports its last checkpoint again.
        if outcome in ("", "finished") and row["step"] > before:
            self.journal.add("reported", trial=t.number, row=row)
            stop = self.stopping.event(self.journal.events[-1])
        if outcome in ("", "finished") and (missing := self.search.missing(row, outcome)):
            self.search.cut_off(t, missing)
            return self.STOP
        if outcome == "cut off":
            self.search.cut_off(t, why)
        elif outcome:
            self.search.end(t, outcome, why, row["seconds"])
        elif stop:
            self.search.end(
                t, "stopped", f"{self.search.planned.settings.scheduler} at step {row['step']}", row["seconds"]
            )
        elif over := self.search.spent():
            self.search.cut_off(t, over)
            return self.STOP
        else:
            self.search.show.reported(t, "")
        return self.STOP if stop else self.CONTINUE
