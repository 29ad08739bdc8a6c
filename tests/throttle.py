"""Slows processes down, for tests that wait for an event in the middle of their work.

At full speed they would take the cores from the tests beside them, and a run that is compared with another would need as many steps.
"""

import signal
import threading
import time
from collections.abc import Iterable
from contextlib import contextmanager, suppress

import psutil

RUN, REST = 0.04, 0.16
"""Seconds for which the processes run, and for which they are stopped."""


@contextmanager
def throttled(pids: Iterable[int], names: tuple[str, ...] = ("ray::RayTrainWorker",)):
    """Until the block ends, lets those of these processes whose command line begins with one of `names` run for a fifth of the time,
    all at once."""
    slow, over = [p for p in (_named(pid, names) for pid in pids) if p], threading.Event()
    assert slow

    def signalled(number: int) -> None:
        for process in slow:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

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


def _named(pid: int, names: tuple[str, ...]) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess, IndexError):
        process = psutil.Process(pid)
        return process if process.cmdline()[0].startswith(names) else None
