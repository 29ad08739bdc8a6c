"""How long a chain of jobs will still take, from what its steps have taken so far on this machine.

A step's `minutes` in the pipeline's YAML say how long it takes relative to the others (they are what it took on one machine). What
finished steps took, and the pace of the one under way by its metrics.jsonl, say how fast this machine is against that one.
"""

from __future__ import annotations

import time

from lib.run import Run

TAIL = 0.08
"""Held-out loss and export, as a share of the training steps."""


class Forecast:
    """minutes: {step: what the YAML says, or None}, in order."""

    def __init__(self, minutes: dict[str, float | None]):
        self.minutes = minutes
        self.took: dict[str, float] = {}
        """Seconds of the steps that are done."""
        self.before: set[str] = set()
        """Steps that were done before this command: nothing is left of them."""

    def finished(self, name: str, seconds: float | None) -> None:
        """seconds: None where the step was done before, in an unknown time."""
        if seconds is None:
            self.before.add(name)
        else:
            self.took[name] = seconds

    def left(self, name: str, run: Run, started: float, now: float) -> tuple[float, list[str], bool] | None:
        """(seconds left, steps whose length isn't known, whether measured here) while `name` is under way; None before anything is known."""
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
        """Seconds of the step under way from start to end, by the pace of its training steps; None before there are two."""
        rows = [r for r in run.metrics() if "loss" in r and r.get("time", 0) >= started]
        if len(rows) < 2 or rows[-1]["step"] == rows[0]["step"]:
            return None
        first, last = rows[0], rows[-1]
        pace = (last["time"] - first["time"]) / (last["step"] - first["step"])
        steps = pace * (last["max_steps"] - last["step"]) + TAIL * pace * last["max_steps"]
        return last["time"] - started + steps

    def line(self, name: str, run: Run, started: float, now: float | None = None) -> str | None:
        now = now or time.time()
        found = self.left(name, run, started, now)
        if not found:
            return None
        seconds, unknown, measured = found
        amount = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} s"
        beyond = f", and then {', '.join(unknown)}" if unknown else ""
        source = "" if measured else ", by what it took elsewhere; this machine's own pace follows with the first steps"
        end = time.strftime("%H:%M", time.localtime(now + seconds))
        return f"About {amount} left for the whole, until {end}{beyond}{source}."
