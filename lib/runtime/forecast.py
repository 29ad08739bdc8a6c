"""Estimates the remaining time of a chain of jobs from the time its steps have taken on this machine.

A step's `minutes` in the pipeline's YAML are the time it took on a reference machine. The durations of finished steps, and the
pace of the current one according to its metrics.jsonl, give this machine's speed relative to the reference.
"""

from __future__ import annotations

import time

from lib.run import Run

TAIL = 0.08
"""Held-out loss and export, as a share of the training steps."""


class Forecast:
    """minutes: {step: `minutes` from the YAML, or None}, in the order of the steps."""

    def __init__(self, minutes: dict[str, float | None]):
        self.minutes = minutes
        self.took: dict[str, float] = {}
        """{finished step: seconds}"""
        self.before: set[str] = set()
        """Steps that were finished before this command started."""

    def finished(self, name: str, seconds: float | None) -> None:
        """Records that a step is finished. seconds: None if it was finished before this command started."""
        if seconds is None:
            self.before.add(name)
        else:
            self.took[name] = seconds

    def left(self, name: str, run: Run, started: float, now: float) -> tuple[float, list[str], bool] | None:
        """Returns (seconds left, later steps of unknown length, whether this machine's speed was measured) while step `name` runs.

        None: the length of the current step is unknown. started, now: Unix times.
        """
        whole = self._whole(run, started, now)
        known = dict(self.took) | ({name: whole} if whole else {})
        both = [n for n in known if self.minutes[n]]
        speed = sum(known[n] for n in both) / sum(60 * self.minutes[n] for n in both) if both else None
        expected = lambda n: self.minutes[n] and 60 * self.minutes[n] * (speed or 1.0)  # noqa: E731
        now_whole = whole or expected(name)
        if now_whole is None:
            return None
        later = [n for n in self.minutes if n not in known and n not in self.before and n != name]
        seconds = max(now_whole - (now - started), 5.0) + sum(expected(n) or 0.0 for n in later)
        return seconds, [n for n in later if expected(n) is None], speed is not None

    @staticmethod
    def _whole(run: Run, started: float, now: float) -> float | None:
        """Returns the estimated total seconds of the current step, from the pace of its training steps. None: fewer than two are logged."""
        rows = [r for r in run.metrics() if "loss" in r and r.get("time", 0) >= started]
        if len(rows) < 2 or rows[-1]["step"] == rows[0]["step"]:
            return None
        first, last = rows[0], rows[-1]
        pace = (last["time"] - first["time"]) / (last["step"] - first["step"])
        steps = pace * (last["max_steps"] - last["step"]) + TAIL * pace * last["max_steps"]
        return last["time"] - started + steps

    def line(self, name: str, run: Run, started: float, now: float | None = None) -> str | None:
        """Returns the estimate as a sentence, or None without one. Arguments as of `left`."""
        now = now or time.time()
        found = self.left(name, run, started, now)
        if not found:
            return None
        seconds, unknown, measured = found
        amount = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} s"
        beyond = f", and then {', '.join(unknown)}" if unknown else ""
        source = (
            ""
            if measured
            else ", going by the time it took elsewhere; the first steps will show this machine's own pace"
        )
        end = time.strftime("%H:%M", time.localtime(now + seconds))
        return f"About {amount} left in total, until {end}{beyond}{source}."
