"""A sample of the job's rows, rendered before anything starts, by a process that has transformers but no torch: the import takes
0.7 s of a core where that of torch takes 4, and the driver itself stays light.
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
from lib.config.job import Job
from lib.models import packaged_weights
from lib.rendering.counts import Counts
from lib.rendering.sequences import Settings
from lib.rendering.verdict import NOUNS, verdict

ROWS, CHARACTERS = 512, 400_000
"""Most that the sample holds; the workers look at every row."""
PATIENCE = 30
"""Seconds, for a tokenizer that has to be downloaded."""


class Sample:
    """Rows spread evenly over all that are read, at most ROWS of them; the process that will render them imports meanwhile."""

    def __init__(self, base: str | None = None):
        """base: of the job, located."""
        self.process = _start() if base and not _absent(base) and "transformers" not in sys.modules else None
        weakref.finalize(self, _end, self.process)  # where the job is refused before it is asked
        self.rows: list[tuple[str, str, dict]] = []  # (side, place, row)
        self.kind, self.read, self.every, self.size = "", 0, 1, 0

    def keep(self, kind: str, side: str, row: dict, place: str) -> None:
        """As lib.data.check calls it."""
        if self.read % self.every == 0:
            self.kind, self.size = kind, self.size + _size(row)
            self.rows.append((side, place, row))
            while len(self.rows) > 1 and (len(self.rows) > ROWS or self.size > CHARACTERS):
                self.rows, self.every = self.rows[::2], self.every * 2
                self.size = sum(_size(row) for *_, row in self.rows)
        self.read += 1


def _size(row: dict) -> int:
    """About the characters that are rendered of it."""
    if "messages" not in row:
        return len(str(row))
    sizes = [len(str(m)) for m in row["messages"]]
    return sum(sum(sizes[: i + 1]) for i, m in enumerate(row["messages"]) if m["role"] == "assistant")


@dataclass
class Rendered:
    """Of the rows in a sample."""

    train: Counts
    heldout: Counts
    all_rows: bool
    """The sample is all that was read."""
    window: int | None
    shown: list[tuple[str, str]]
    """(label, text) of one row as the model will see it."""
    settings: Settings

    def rows(self, rows: int | None) -> int | None:
        """Rows of a batch that `rows` training rows come to."""
        if not rows or not self.train.rows:
            return rows
        left = self.train.left(self.settings)
        return left if self.all_rows else round(rows * left / self.train.rows)

    def summary(self) -> dict:
        """What provenance.json keeps until the workers have counted."""
        return {"of_all_rows": self.all_rows, "train": self.train.summary(), "heldout": self.heldout.summary()}

    def line(self) -> str:
        t = self.train
        whole = "" if self.all_rows else f" in a sample of {t.rows:,} rows"
        learnt = f", {t.learnt:,} of them learnt" if t.learnt else ""
        return f"{t.examples:,} {NOUNS[t.kind]}{whole}: {t.tokens:,} tokens{learnt}; the longest has {t.longest:,}"


def look(
    job: Job, config: str, sample: Sample, complete: bool, show: bool
) -> tuple[Rendered | None, list[str], list[str]]:
    """(what was found, problems, notes); nothing is found where no tokenizer is at hand.

    job: its base is located; config: "module:Class" of the stage's TRL config; complete: the sample was taken of all rows; show: also
    one row as the model will see it.
    """
    if not sample.rows:
        return None, [], []
    defaults = {key: f.default for key, f in trl_fields.read(config).items()}
    settings = Settings.of(job.makes, SimpleNamespace(**defaults | job.train))
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
    """Why this machine can't render."""


def _absent(base: str) -> str | None:
    """Why this machine can't render for it."""
    if base.startswith("s3://"):
        return f"{base} is not on this machine"
    if base.startswith("package:") and not packaged_weights.unpacked(base.removeprefix("package:")):
        return f"{base} is not unpacked yet"
    return None


def _start() -> subprocess.Popen:
    """lib/rendering/__main__.py, which ends by itself where it is asked nothing."""
    command, root = [sys.executable, "-m", "lib.rendering"], Path(__file__).parents[2]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _end(process: subprocess.Popen | None) -> None:
    if process and process.poll() is None:
        process.kill()
        process.communicate()


def _rendered(request: dict, process: subprocess.Popen | None) -> dict:
    """The reply of lib/rendering/__main__.py: of `process`, or of this one where it has transformers already."""
    if why := _absent(request["model"]["base"]):
        raise _NotAtHand(why)
    if not process and "transformers" in sys.modules:
        from lib.rendering.__main__ import answer

        return json.loads(json.dumps(answer(json.loads(json.dumps(request)))))  # as the process would read and write it
    process = process or _start()
    try:
        out, err = process.communicate(json.dumps(request), timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        _end(process)
        raise _NotAtHand(f"the tokenizer was not loaded within {PATIENCE} s") from None
    if process.returncode:
        last = (err.strip().splitlines() or ["nothing was printed"])[-1]
        raise _NotAtHand(f"rendering failed here ({last})")
    return json.loads(out.splitlines()[-1])
