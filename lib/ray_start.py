"""A Ray of this process's own, on a machine that may be busy."""

from __future__ import annotations

import os
import re
import shlex
import sys

TRIES = 4
PAUSE = 2
"""Seconds between two tries."""
SLOW = (
    "timed out during startup|Failed to (start|connect to) GCS|Timed out waiting for node info|No node info found|"
    "Failed to get node info|may not have started successfully"
)
"""In the words of ray/_private/node.py and services.py."""


def interpreter() -> dict[str, str]:
    """What a runtime environment on this machine needs where the interpreter's path has a space, or Ray's shell would split it."""
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


class NotStarted(RuntimeError):
    """Ray didn't start in TRIES tries; the text says why and what to do."""


def start(**options) -> None:
    """ray.init(address="local", **options). Raises NotStarted.

    Ray waits 30 s for its own processes, a constant of its own (ray/_private/node.py), which a machine with more work than
    cores can exceed. Then what was started is ended and a new session is tried, when the files that it reads are in memory.
    """
    import psutil
    import ray
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_fixed

    before = set(psutil.Process().children(recursive=True))

    def clear(attempt) -> None:
        ray.shutdown()
        for left in set(psutil.Process().children(recursive=True)) - before:
            if left.is_running():
                left.kill()  # ray.shutdown() knows nothing of a node that never came up
        if attempt.attempt_number < TRIES:
            print(
                f"Ray didn't start in time ({_load()}): trying again, {attempt.attempt_number + 1} of {TRIES}.",
                file=sys.stderr,
            )

    try:
        for attempt in Retrying(
            stop=stop_after_attempt(TRIES),
            wait=wait_fixed(PAUSE),
            retry=retry_if_exception(too_slow),
            after=clear,
            reraise=True,
        ):
            with attempt:
                ray.init(address="local", **options)
    except Exception as e:
        if not too_slow(e):
            raise
        raise NotStarted(
            f"Ray did not start in {TRIES} tries of half a minute ({_load()}). Its last word: {' '.join(str(e).split())[:200]} "
            "End other programs, or wait until they are done, and run the same command again. Ray's own log is in "
            "/tmp/ray/session_latest/logs."
        ) from e


def too_slow(error: BaseException) -> bool:
    """Whether another try may help: Ray's own processes didn't come up in time."""
    return re.search(SLOW, str(error)) is not None


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
