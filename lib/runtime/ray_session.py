"""The Ray session of a job: the cluster it was submitted to, or a local Ray of its own, on a machine that may be busy."""

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

from lib.runtime import termination

RAY_ENV = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # the patch prints worker source code at every datasets.map
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",  # after this an elastic group tries with fewer workers
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the end of training or the loss of a worker is noticed
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # Ray Train's own controller would cause the warning
    "RAY_prestart_worker_first_driver": "0",  # training workers need an environment of their own anyway
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SCHEDULER_EVENTS": "0",  # "Resized to 0 CPUs." every 3 s while nothing can be rented; lib/runtime/waiting.py prints why
    "RAY_worker_niceness": "0",  # at Ray's default of 15 a worker gets a thirtieth of a core beside any other process
    # Output of Ray's own actors that a user can do nothing about.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "PreemptionWatcher|multiple active Ray instances|Failed to query Ray Train Controller",
}

TRIES = 4
PAUSE = 2
"""Seconds between tries."""
SLOW = (
    "timed out during startup|Failed to (start|connect to) GCS|Timed out waiting for node info|No node info found|"
    "Failed to get node info|may not have started successfully"
)
"""Fragments of the messages with which ray/_private/node.py and services.py report a slow start."""


def interpreter() -> dict[str, str]:
    """Runtime-environment entries for a local Ray: a quoted py_executable if the interpreter's path has a space, at which Ray's
    shell command would split it."""
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


class NotStarted(RuntimeError):
    """Ray didn't start in TRIES tries. The message contains the cause and a remedy."""


def start(**options) -> None:
    """Calls ray.init(address="local", **options), up to TRIES times. Raises NotStarted.

    Ray gives its own processes 30 s to start, a constant in ray/_private/node.py, which an overloaded machine can exceed. In
    that case the leftover processes are killed and a new session is started, with Ray's files now in the page cache.
    """
    import psutil
    import ray
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_fixed

    before = set(psutil.Process().children(recursive=True))

    def clear(attempt) -> None:
        ray.shutdown()
        for left in set(psutil.Process().children(recursive=True)) - before:
            if left.is_running():
                left.kill()  # ray.shutdown() leaves the processes of a node that never came up
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
            f"Ray did not start in {TRIES} tries of half a minute ({_load()}). Its last error: {' '.join(str(e).split())[:200]} "
            "End other programs, or wait until they are done, and run the same command again. Ray's logs are in "
            "/tmp/ray/session_latest/logs."
        ) from e


def too_slow(error: BaseException | str) -> bool:
    """Whether another try may help, because Ray's own processes didn't start in time."""
    return re.search(SLOW, str(error)) is not None


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def prepare() -> None:
    """Sets Ray's environment variables for jobs and makes SIGTERM act as Ctrl-C. Call before Ray is imported."""
    for key, value in RAY_ENV.items():
        os.environ.setdefault(key, value)
    termination.as_interrupt()


@contextmanager
def connected(ahead: str = "ray", env: dict[str, str] | None = None) -> Iterator[None]:
    """Provides Ray inside the block: the existing connection, or one from connect(ahead, env), closed at the end of the block."""
    import ray

    if ray.is_initialized():
        yield
        return
    connect(ahead, env)
    try:
        yield
    finally:
        ray.shutdown()


def connect(ahead: str = "ray", env: dict[str, str] | None = None) -> None:
    """Connects to the cluster of RAY_ADDRESS (which `ray job submit` sets); without it, starts a Ray for this process alone.

    ahead: a module that the caller will need; it is imported while Ray's processes start. env: environment variables of all processes
    that the caller starts in Ray, whose output is then left in Ray's logs.
    """
    import ray

    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    # A Ray of our own has no API server. Without this address, Ray Train would find the API server of another cluster on this
    # machine, learn from it that its controller isn't alive, and remove its workers' placement groups.
    of_all = {"PYTHONPATH": path, "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
    quiet = {"log_to_driver": env is None, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet, **({"runtime_env": {"env_vars": env}} if env else {}))
        termination.as_interrupt()
    else:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a local Ray has no node to lose
        reading = threading.Thread(target=importlib.import_module, args=(ahead,))
        reading.start()
        start(include_dashboard=False, runtime_env=interpreter() | {"env_vars": of_all | (env or {})}, **quiet)
        termination.as_interrupt()
        reading.join()
