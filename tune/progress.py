"""Progress of a search on the terminal: each trial's start and end, and the best so far with what was spent."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tune.journal import Journal, Trial
from tune.plan import Plan
from tune.ranking import best
from tune.space import short


class Progress:
    """While the `with` block runs, prints a line when a trial starts or ends; a terminal also shows the latest report as its status."""

    def __init__(self, planned: Plan, journal: Journal):
        from rich.console import Console

        self.planned, self.journal, self.began = planned, journal, time.time()
        self.console = Console(
            width=None if sys.stdout.isatty() else 160, highlight=False, markup=False, soft_wrap=True
        )
        self.status = self.console.status("starting trials …")

    def __enter__(self) -> Progress:
        self.status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.status.stop()

    def started(self, t: Trial) -> None:
        how = f"goes on after step {t.step}" if t.reports else "starts"
        what = {
            "start": "the job as it is",
            "search": short(t.settings),
            "confirm": f"as trial {t.of}, other seed ({t.seed})",
        }
        self._print(f"trial {t.number} {how}: {what[t.role]}")

    def lost(self, t: Trial) -> None:
        self._print(f"trial {t.number} lost its process or node after step {t.step}")

    def reported(self, t: Trial, over: str) -> None:
        s = self.planned.settings
        metric = s.metric if t.last(s.metric) is not None else s.curve
        value = t.last(metric)
        text = f"trial {t.number}  step {t.step}" + (f"  {metric} {value:.4f}" if value is not None else "")
        if t.status == "running" and not over:
            self.status.update(text + self._best())
            return
        ended = {
            "running": over,
            "finished": "finished",
            "stopped": f"stopped by {t.why}",
            "failed": f"failed: {t.why}",
        }
        self._print(f"{text}  {ended[t.status]}{self._best()}")

    def _best(self) -> str:
        s, trials = self.planned.settings, self.journal.trials.values()
        found = best(list(trials), s.metric, self.planned.mode)
        value = found and found.last(s.metric)
        usd = s.usd(sum(t.seconds for t in trials))
        money = f", ${usd:.2f}" + (f" of ${s.budget.usd:g}" if s.budget.usd else "") if s.usd_per_hour else ""
        return f"  (best {value:.4f}: trial {found.number}{money})" if found and value is not None else money

    def _print(self, text: str) -> None:
        self.console.print(f"{time.time() - self.began:5.0f} s  {text}")
