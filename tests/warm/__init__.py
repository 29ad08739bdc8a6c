"""A Python whose libraries are imported already, for the jobs that tests start.

Half of the time of a small job goes by while each of its processes imports torch, transformers and TRL. `python` is a program
that takes Python's command line; it asks `server`, a process that has imported them, to fork and to run that command with its
own environment, folder, standard streams and signals. It ends as the fork ends; killed, the fork is killed too. Where the
environment has another value for something that libraries read when they are imported, it runs the ordinary Python.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

IMPORTED = (
    "HF_HOME", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "TRANSFORMERS_", "HOME", "OMP_", "MKL_", "ONEDNN_",
    "ATEN_", "PYTHONHASHSEED",
)  # fmt: skip
"""Beginnings of the names of variables that libraries read when they are imported, and tests set. HF_HUB_OFFLINE is set in the fork."""


def signature(env: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in env.items() if k.startswith(IMPORTED)}


@cache
def python() -> str:
    """Path of the program. Its server is started with it, and ends with this process."""
    return start(os.environ)


def start(env: Mapping[str, str]) -> str:
    """The same for programs that have that environment."""
    folder, here = Path(tempfile.mkdtemp(prefix="warm-")), Path(__file__).parent
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
