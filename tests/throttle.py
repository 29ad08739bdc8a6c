"""Slows training down, for tests that wait for an event in the middle of it.

At full speed it would take the cores from the tests beside it, and the run that it is compared with would need as many steps.
"""

import signal
import threading
import time
from collections.abc import Iterable
from contextlib import contextmanager, suppress

import psutil

RUN, REST = 0.04, 0.16
"""Seconds for which the workers run, and for which they are stopped."""


@contextmanager
def throttled(pids: Iterable[int]):
    """Until the block ends, lets those of these processes that are Ray Train's workers run for a fifth of the time, all at once."""
    workers, over = [p for p in map(_worker, pids) if p], threading.Event()
    assert workers

    def signalled(number: int) -> None:
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.send_signal(number)

    def work() -> None:
        while not over.is_set():
            signalled(signal.SIGSTOP)
            over.wait(REST)
            signalled(signal.SIGCONT)
            time.sleep(RUN)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _worker(pid: int) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess, IndexError):
        process = psutil.Process(pid)
        return process if process.cmdline()[0].startswith("ray::RayTrainWorker") else None
