"""SIGTERM, which `kill`, schedulers and `ray job stop` send, ends a job as Ctrl-C does: one message, and a true status."""

from __future__ import annotations

import signal
import threading

_received = False


def as_interrupt() -> None:
    """From now on a SIGTERM raises KeyboardInterrupt in the main thread. To be called again after Ray has started, which puts a
    handler of its own in the place, and its C++ libraries' stack with it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number, frame) -> None:
    global _received
    _received = True
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as of what a shell starts in the background
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)  # which asyncio handles by itself while it runs


def word() -> str:
    """What happened, for the message."""
    return "Terminated" if _received else "Interrupted"


def code() -> int:
    """The exit code that shells give: 128 and the signal's number."""
    return 128 + (signal.SIGTERM if _received else signal.SIGINT)
