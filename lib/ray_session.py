"""The Ray that a job works on: the cluster that it was submitted to, or one of its own, on a machine that may be busy."""

from __future__ import annotations

import importlib
import logging
import os
import re
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lib import termination

RAY_ENV = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it would print worker source code at every datasets.map
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",  # then an elastic group tries with fewer
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the end, or a lost worker, is seen
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # Ray Train's controller does it
    "RAY_prestart_worker_first_driver": "0",  # training workers need an environment of their own anyway
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SCHEDULER_EVENTS": "0",  # "Resized to 0 CPUs." every 3 s while nothing can be rented: lib/waiting.py tells why
    "RAY_worker_niceness": "0",  # Ray's 15 leaves its workers a thirtieth of a core beside any other process
    # What Ray's own actors print and a user can do nothing about.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "PreemptionWatcher|multiple active Ray instances|Failed to query Ray Train Controller",
}

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


def prepare() -> None:
    """Before Ray is imported: its settings for jobs, and SIGTERM handled as Ctrl-C."""
    for key, value in RAY_ENV.items():
        os.environ.setdefault(key, value)
    termination.as_interrupt()


@contextmanager
def connected(ahead: str = "ray") -> Iterator[None]:
    """Ray for the block: the one that is connected already, or one from connect(), which is disconnected at the end."""
    import ray

    if ray.is_initialized():
        yield
        return
    connect(ahead)
    try:
        yield
    finally:
        ray.shutdown()


def connect(ahead: str = "ray") -> None:
    """Joins the cluster of RAY_ADDRESS (which `ray job submit` sets), else starts a Ray for this process alone.

    `ahead` is a module that the caller will need; it is imported while Ray's processes start.
    """
    import ray

    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    # A Ray of our own has no API server. Ray Train would look for one, find another cluster's on this machine, hear there that its
    # controller isn't alive, and take its workers' places away.
    env = interpreter() | {"env_vars": {"PYTHONPATH": path, "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}}
    quiet = {"log_to_driver": True, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        termination.as_interrupt()
    else:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # of nodes that a cluster would take away
        reading = threading.Thread(target=importlib.import_module, args=(ahead,))
        reading.start()
        start(include_dashboard=False, runtime_env=env, **quiet)
        termination.as_interrupt()
        reading.join()
