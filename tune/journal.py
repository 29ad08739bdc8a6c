"""The record of a search: journal.jsonl, one line per event, from which a search that was killed goes on.

Ray Tune's own way to go on, Tuner.restore, unpickles its state and loses the scheduler's (ray-project/ray#30838). Here every start
makes a new Tuner: finished trials are read from the journal, the scheduler sees their reports again, unfinished trials go on from their
checkpoints, and proposals depend on the journal alone.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from lib.run import Run

Status = Literal["running", "finished", "stopped", "failed"]
"""running: also one that the budget cut off; it goes on if the budget is raised. stopped: by the scheduler, with a checkpoint from which
the trial can go on."""


Role = Literal["start", "search", "confirm"]
"""start: the job that the search starts from. confirm: a finalist or the start again, with another seed and fresh rows."""


@dataclass
class Trial:
    """What the journal says of one trial."""

    number: int
    """From 0, in the order of the proposals."""
    settings: dict[str, Any]
    """{key of the job: value}"""
    role: Role = "search"
    of: int | None = None
    """Of a confirmation: the trial whose settings it has."""
    seed: int | None = None
    """Of a confirmation: 1, 2, … is added to train.seed."""
    generation: int = 0
    member: int | None = None
    parent: int | None = None
    """Of population based training: the number of generations before it, which member of the population it is, and the trial whose last
    checkpoint it begins with."""
    status: Status = "running"
    reports: list[dict[str, Any]] = field(default_factory=list)
    """The trial's rows of metrics.jsonl at its reports, each with step, tokens and seconds (since the trial's start)."""
    why: str = ""
    """Why it was stopped or failed."""
    ended_after: float = 0.0
    """Seconds at its end; 0: it has not ended."""
    earlier: dict[str, Any] = field(default_factory=dict)
    """Seconds and tokens at the last checkpoint of a job in `before`."""

    def values(self, metric: str) -> list[tuple[int, float]]:
        """Returns (step, value) of each report that has the metric."""
        return [(r["step"], float(r[metric])) for r in self.reports if metric in r]

    def last(self, metric: str) -> float | None:
        found = self.values(metric)
        return found[-1][1] if found else None

    @property
    def seconds(self) -> float:
        """Time for which it has occupied its share of the machine, over all attempts."""
        return self.ended_after or float(self._latest.get("seconds", 0.0))

    @property
    def tokens(self) -> int:
        """Tokens that it trained on, without those of its parent."""
        return int(self._latest.get("tokens", 0))

    @property
    def _latest(self) -> dict[str, Any]:
        return self.reports[-1] if self.reports else self.earlier

    @property
    def lineage_tokens(self) -> int:
        return int(self.reports[-1].get("num_input_tokens_seen", 0)) if self.reports else 0

    @property
    def step(self) -> int:
        return int(self.reports[-1]["step"]) if self.reports else 0


class Journal:
    """journal.jsonl in the directory of a search. Only the driver writes it.

    trials: {number: Trial}. spent: wall-clock seconds of earlier starts.
    """

    FILE = "journal.jsonl"

    def __init__(self, run: Run):
        self.run, self.trials = run, dict[int, Trial]()
        self.events: list[dict[str, Any]] = []
        self.spent, self.cut = 0.0, ""
        began = last = 0.0
        for number, line in enumerate(self._lines(), 1):
            try:
                event = json.loads(line)
                self._apply(event)
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{run.at(self.FILE)}:{number} is damaged. Restore the file from a copy, or name another --run."
                ) from None
            if event["event"] == "start":
                self.spent, began = self.spent + (last - began), event["time"]
            last = event["time"]
        self.spent += last - began

    def _lines(self) -> list[str]:
        if not self.run.fs.exists(self.run.at(self.FILE)):
            return []
        text = self.run.read_text(self.FILE)
        whole, self.cut = text.rsplit("\n", 1) if "\n" in text else ("", text)
        return whole.split("\n") if whole else []

    def add(self, event: str, **fields: Any) -> None:
        """Appends an event and applies it to `trials`."""
        if self.cut:  # a line that a kill cut off; what it said happens again
            whole = self.run.read_text(self.FILE).removesuffix(self.cut)
            self.run.write_text(self.FILE, whole)
            self.cut = ""
        row = {"event": event, "time": round(time.time(), 2), **fields}
        self.run.append_text(self.FILE, json.dumps(row, default=str) + "\n")
        self._apply(json.loads(json.dumps(row, default=str)))

    def _apply(self, row: dict[str, Any]) -> None:
        self.events.append(row)
        if row["event"] == "proposed":
            of = {k: v for k, v in row.items() if k not in ("event", "time", "trial")}
            self.trials[row["trial"]] = Trial(row["trial"], **of)
        elif row["event"] == "reported":
            self.trials[row["trial"]].reports.append(row["row"])
        elif row["event"] == "earlier":
            self.trials[row["trial"]].earlier = row["row"]
        elif row["event"] == "ended":
            t = self.trials[row["trial"]]
            t.status, t.why, t.ended_after = row["status"], row["why"], row["seconds"]

    def propose(self, settings: dict[str, Any], role: Role, **fields: Any) -> Trial:
        """Adds the next trial and returns it. fields: others of Trial."""
        number = len(self.trials)
        self.add("proposed", trial=number, settings=settings, role=role, **fields)
        return self.trials[number]

    def of_role(self, role: Role) -> list[Trial]:
        return [t for t in self.trials.values() if t.role == role]
