"""Makes SIGTERM, which `kill`, schedulers and `ray job stop` send, end a job as Ctrl-C does: with one message and a correct status."""

from __future__ import annotations

import signal
import threading

_received = False


def as_interrupt() -> None:
    """Makes SIGTERM raise KeyboardInterrupt in the main thread. Call it again after Ray has started, because Ray installs its own
    handler, which prints the stack of its C++ libraries."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number, frame) -> None:
    global _received
    _received = True
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in processes that a shell starts in the background
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)  # while asyncio runs, it handles SIGINT itself


def word() -> str:
    """Returns the word for the message: "Terminated" or "Interrupted"."""
    return "Terminated" if _received else "Interrupted"


def code() -> int:
    """Returns the exit code that shells use: 128 plus the signal's number."""
    return 128 + (signal.SIGTERM if _received else signal.SIGINT)
