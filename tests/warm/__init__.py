"""A Python with libraries already imported, for the jobs that tests start.

A small job spends half of its time importing torch, transformers and TRL in each of its processes. `python` is a program that
accepts Python's command line; it asks `server`, a process that has imported them, to fork and to run that command with the
program's own environment, folder, open files and signals. It ends when the fork ends; if it is killed, so is the fork. If the
environment differs in a variable that libraries read on import, it runs the ordinary Python.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import psutil

IMPORTED = (
    "HF_HOME", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "TRANSFORMERS_", "HOME", "OMP_", "MKL_", "ONEDNN_",
    "ATEN_", "PYTHONHASHSEED",
)  # fmt: skip
"""Prefixes of variables that libraries read on import and that tests set. HF_HUB_OFFLINE is set in the fork."""


def signature(env: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in env.items() if k.startswith(IMPORTED)}


_folders: list[Path] = []


@cache
def python() -> str:
    """Returns the path of the program. Its server starts with it and ends with this process."""
    return start(os.environ)


def start(env: Mapping[str, str]) -> str:
    """Like python(), for programs with that environment."""
    here = Path(__file__).parent
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    _folders.append(folder)
    program = folder / "python"
    program.write_text(f"#!{sys.executable} -IS\n" + (here / "client.py").read_text())
    program.chmod(0o755)
    command = [sys.executable, "-m", "tests.warm.server", str(folder)]
    server = subprocess.Popen(command, cwd=here.parent.parent, env=dict(env), stderr=subprocess.DEVNULL)

    def end() -> None:
        server.terminate()
        server.wait()

    atexit.register(end)
    return str(program)


def tree(process: psutil.Process) -> list[psutil.Process]:
    """Returns the process and all its descendants. A fork of the server counts as a descendant of the program that requested it."""
    found, todo = [], [process]
    while todo:
        p = todo.pop()
        found.append(p)
        forked = [f for folder in _folders for f in (folder / "forks").glob(str(p.pid))]
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):  # it has just ended
            todo += [*p.children(), *(psutil.Process(int(f.read_text())) for f in forked)]
    return found


def kill(process: psutil.Process) -> None:
    """Sends kill -9 to the process and all its descendants, at once."""
    for p in tree(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            p.kill()
