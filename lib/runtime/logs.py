"""Redirects library output to a file of the run; only lines printed by `say` go to the terminal.

Each process that works on a run writes RUN/logs/<name>.log: all output of Python, C++ and child processes, including
progress bars and warnings. A resumed run appends to the file. For a remote run each process uploads its file when it is
done.
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
"""The standard output before it was redirected."""
_path: Path | None = None
"""The file that it is redirected to."""


def say(text: str) -> None:
    """Prints a line to the terminal, even while other output is redirected."""
    print(text, file=_terminal or sys.stdout, flush=True)


def keep(path: Path) -> None:
    """Redirects the output of this process and of those that it starts to the end of `path`, from now on."""
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
    """Returns the file to which output is redirected, to pass to a helper process in another environment. None: not redirected."""
    return str(_path) if _path else None


@contextmanager
def kept(run: Run, name: str) -> Iterator[None]:
    """Redirects output to a file in the run's logs/ while the block runs."""
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
    """Returns the log file of the process with role `name`. For a remote run it is on this node's disk, with a unique name."""
    if not run.remote:
        return Path(run.at(f"logs/{name}.log"))
    from lib.runtime import checkpoint

    return checkpoint.scratch(run) / "logs" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.log"


@contextmanager
def driver(run: Run) -> Iterator[None]:
    """Sends log records and warnings of Python libraries in this process to the run's logs/driver.log while the block runs.
    Printed output stays on the terminal, because most of it is our own."""
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
    """Creates the folder and the file at the first line, so that no empty files are left."""

    def _open(self):
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()


def line(run: Run) -> tuple[str, str]:
    """Returns (label, text) for the plan that a job prints."""
    return "logs", f"{run.at('logs')}: what the libraries print"


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
