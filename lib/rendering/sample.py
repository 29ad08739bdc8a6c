"""Renders a sample of the job's rows before anything starts, in a process that imports transformers but not torch: this import
takes 0.7 s of CPU time, torch's takes 4 s. The driver itself imports neither.
"""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

from lib.config import trl_fields
from lib.config.adapters import virtual_tokens
from lib.config.job import Job
from lib.models import packaged_weights
from lib.rendering.counts import Counts
from lib.rendering.sequences import Settings
from lib.rendering.verdict import NOUNS, verdict

ROWS, CHARACTERS = 512, 400_000
"""Maximum size of the sample, in rows and characters. The workers check every row."""
PATIENCE = 30
"""Seconds to wait for the rendering, which may have to download a tokenizer."""


class Sample:
    """At most ROWS rows, spread evenly over all that are read. Meanwhile the process that will render them does its imports."""

    def __init__(self, base: str | None = None):
        """base: the job's base, as lib.models.locate.locate returned it; None starts no process."""
        self.process = _start() if base and not _absent(base) and "transformers" not in sys.modules else None
        weakref.finalize(self, _end, self.process)  # if the job is rejected before the process gets its request
        self.rows: list[tuple[str, str, dict]] = []  # (side, place, row)
        self.kind, self.read, self.every, self.size = "", 0, 1, 0

    def keep(self, kind: str, side: str, row: dict, place: str) -> None:
        """Adds a row, if it is due; lib.data.check calls this for every row."""
        if self.read % self.every == 0:
            self.kind, self.size = kind, self.size + _size(row)
            self.rows.append((side, place, row))
            while len(self.rows) > 1 and (len(self.rows) > ROWS or self.size > CHARACTERS):
                self.rows, self.every = self.rows[::2], self.every * 2
                self.size = sum(_size(row) for *_, row in self.rows)
        self.read += 1


def _size(row: dict) -> int:
    """Returns the approximate number of characters that are rendered for a row: each answer with all messages before it."""
    if "messages" not in row:
        return len(str(row))
    sizes = [len(str(m)) for m in row["messages"]]
    return sum(sum(sizes[: i + 1]) for i, m in enumerate(row["messages"]) if m["role"] == "assistant")


@dataclass
class Rendered:
    """The result of rendering a sample."""

    train: Counts
    heldout: Counts
    all_rows: bool
    """Whether the sample holds all rows."""
    window: int | None
    shown: list[tuple[str, str]]
    """Lines (label, text) that show one row as the model will see it."""
    settings: Settings

    def rows(self, rows: int | None) -> int | None:
        """Returns how many batch rows `rows` training rows become once they are split into examples, dropped and packed;
        extrapolated from the sample."""
        if not rows or not self.train.rows:
            return rows
        left = self.train.left(self.settings)
        return left if self.all_rows else round(rows * left / self.train.rows)

    def summary(self) -> dict:
        """Returns the entry in provenance.json that is replaced once the workers have counted all rows."""
        return {"of_all_rows": self.all_rows, "train": self.train.summary(), "heldout": self.heldout.summary()}

    def line(self) -> str:
        t = self.train
        whole = "" if self.all_rows else f" in a sample of {t.rows:,} rows"
        learnt = f", {t.learnt:,} of them learnt" if t.learnt else ""
        return f"{t.examples:,} {NOUNS[t.kind]}{whole}: {t.tokens:,} tokens{learnt}; the longest has {t.longest:,}"


def look(
    job: Job, config: str, sample: Sample, complete: bool, show: bool
) -> tuple[Rendered | None, list[str], list[str]]:
    """Renders the sample. Returns (result, problems, notes); the result is None if this machine has no tokenizer for the base.

    job: with a located base; config: "module:Class" of the stage's TRL config; complete: whether the sample was drawn from all
    rows; show: whether to include one row as the model will see it.
    """
    if not sample.rows:
        return None, [], []
    defaults = {key: f.default for key, f in trl_fields.read(config).items()}
    args = SimpleNamespace(**defaults | job.train)
    settings = Settings.of(job.makes, args, job.data.reasoning, virtual_tokens(job.model))
    try:
        reply = _rendered(
            {
                "model": asdict(job.model),
                "settings": asdict(settings),
                "kind": sample.kind,
                "rows": sample.rows,
                "show": show,
            },
            sample.process,
        )
    except _NotAtHand as why:
        return None, [], [f"how the model will see the rows is checked when the workers start: {why}"]
    if "problem" in reply:
        return None, [reply["problem"]], []
    train, heldout = (Counts(**reply[side]) for side in ("train", "heldout"))
    shown = [(label, text) for label, text in reply["shown"]]
    found = Rendered(train, heldout, complete and sample.every == 1, reply["window"], shown, settings)
    return found, *verdict(train + heldout, job, settings, found.window)


class _NotAtHand(Exception):
    """This machine can't render; the message gives the reason."""


def _absent(base: str) -> str | None:
    """Returns why this machine can't render for `base`; None if it can."""
    if base.startswith("s3://"):
        return f"{base} is not on this machine"
    if base.startswith("package:") and not packaged_weights.unpacked(base.removeprefix("package:")):
        return f"{base} is not unpacked yet"
    return None


def _start() -> subprocess.Popen:
    """Starts lib/rendering/__main__.py, which exits by itself if its standard input is closed without a request."""
    command, root = [sys.executable, "-m", "lib.rendering"], Path(__file__).parents[2]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _end(process: subprocess.Popen | None) -> None:
    if process and process.poll() is None:
        process.kill()
        process.communicate()


def _rendered(request: dict, process: subprocess.Popen | None) -> dict:
    """Returns the reply of lib/rendering/__main__.py, computed by `process`, or by this process if it has imported transformers."""
    if why := _absent(request["model"]["base"]):
        raise _NotAtHand(why)
    if not process and "transformers" in sys.modules:
        from lib.rendering.__main__ import answer

        return json.loads(
            json.dumps(answer(json.loads(json.dumps(request))))
        )  # as the other process would read and write it
    process = process or _start()
    try:
        out, err = process.communicate(json.dumps(request), timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        _end(process)
        raise _NotAtHand(f"the tokenizer was not loaded within {PATIENCE} s") from None
    if process.returncode:
        last = (err.strip().splitlines() or ["it printed nothing"])[-1]
        raise _NotAtHand(f"rendering failed here ({last})")
    return json.loads(out.splitlines()[-1])
