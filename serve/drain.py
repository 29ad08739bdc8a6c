"""What `serve run` lets end when it's told to end: SIGTERM and Ctrl-C would else cut the answers that are under way."""

from __future__ import annotations

import atexit
import signal
import sys
import time


def at_exit() -> None:
    """Has the process of `serve run`, which calls this before it starts Ray, delete its applications first: each replica ends
    once its requests are answered (graceful_shutdown_timeout_s at most), and nobody new is let in. Told again, it ends at once."""
    import ray  # noqa: F401  (what it registers to be done at the end is done after this)

    # SIGTERM is Ray's, which exits by SystemExit; what Serve does at Ctrl-C ends its proxies, and with them all connections.
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    atexit.register(_drain)


def _drain() -> None:
    import ray
    from ray import serve

    if not ray.is_initialized():
        return
    print("Waiting for the answers that are under way; tell me again to end at once.", file=sys.stderr, flush=True)
    for name in serve.status().applications:
        serve.delete(name, _blocking=False)  # which would wait for a minute at most
    while serve.status().applications:
        time.sleep(0.2)
