"""What the libraries print goes to a file of the run; the terminal is for what `say` writes.

A process that works on a run writes its own RUN/logs/<name>.log: whatever Python, C++ and child processes print in it,
progress bars and warnings included. A run that goes on adds to the file. Of a remote run each process uploads a file when
it is done.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lib.run import Run

_terminal = None
"""What standard output was before this process kept it."""
_path: Path | None = None
"""Where it is kept."""


def say(text: str) -> None:
    """Prints a line for the user, also where all else that is printed is kept."""
    print(text, file=_terminal or sys.stdout, flush=True)


def keep(path: Path) -> None:
    """From now on, what this process and those that it starts print goes to the end of `path`."""
    global _terminal, _path
    path.parent.mkdir(parents=True, exist_ok=True)
    _flush()
    if not _terminal:
        _terminal = os.fdopen(os.dup(1), "w", encoding="utf-8")
    _path = path
    with path.open("ab") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)


def current() -> str | None:
    """Where this process keeps what it prints, for a process of another environment that works for it."""
    return str(_path) if _path else None


@contextmanager
def kept(run: Run, name: str) -> Iterator[None]:
    """keep() in the run's logs/ while the block runs."""
    global _terminal, _path
    path = file(run, name)
    before = os.dup(1), os.dup(2)
    keep(path)
    try:
        yield
    finally:
        _flush()
        for saved, number in zip(before, (1, 2), strict=True):
            os.dup2(saved, number)
            os.close(saved)
        _terminal.close()
        _terminal = _path = None
        if run.remote:
            run.fs.put_file(str(path), run.at(f"logs/{path.name}"))


def file(run: Run, name: str) -> Path:
    """Where a process that does `name` for the run writes; of a remote run on this node's disk, by a name of its own."""
    if not run.remote:
        return Path(run.at(f"logs/{name}.log"))
    from lib import checkpoint

    return checkpoint.scratch(run) / "logs" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.log"


@contextmanager
def driver(run: Run) -> Iterator[None]:
    """While the block runs, what Python libraries log or warn of in this process goes to the run's logs/driver.log. What
    is printed stays on the terminal, for most of it is ours."""
    path, root = file(run, "driver"), logging.getLogger()
    handler = _Late(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()
        if run.remote and path.is_file():
            run.fs.put_file(str(path), run.at(f"logs/{path.name}"))


class _Late(logging.FileHandler):
    """Makes folder and file with the first line, so that a run without any has none."""

    def _open(self):
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()


def line(run: Run) -> tuple[str, str]:
    """(label, text) for the plan that a job prints."""
    return "logs", f"{run.at('logs')}: what the libraries print"


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
