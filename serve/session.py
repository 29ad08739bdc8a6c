"""Starts and stops Ray for `serve run`, so that SIGTERM and Ctrl-C let the answers in progress finish."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import time
from typing import Any

import click

from lib.runtime import ray_session

PROXY = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""Environment variable that makes Serve's proxies, which inherit it, load serve/proxy.py."""


def begin(options: dict[str, Any], port: int, timeout_s: float) -> None:
    """Starts Ray and Serve for this process, or joins a cluster, as `serve run` would with its `options`.

    At exit the application is deleted first: it accepts no new requests, and its replicas stop once theirs are answered (after
    graceful_shutdown_timeout_s at most). A second signal stops everything at once.
    """
    import ray

    if ray.is_initialized():  # --reload calls the application again
        return
    # Serve's own Ctrl-C handling stops its proxies, which closes all connections.
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    # With one of these options, `serve run` itself starts Ray, since it interprets them; the port is then 8000.
    if not any(options.get(key) for key in ("runtime_env", "runtime_env_json", "working_dir")):
        _start(options.get("address"), port, timeout_s)
    atexit.register(_drain, options.get("name") or "default")  # runs before the handlers that ray registered on import


def _start(address: str | None, port: int, timeout_s: float) -> None:
    import ray
    from ray import serve

    os.environ.setdefault(PROXY, "serve.proxy:middlewares")
    os.environ.setdefault("RAY_worker_niceness", ray_session.RAY_ENV["RAY_worker_niceness"])
    # No dashboard: it takes longer to start than everything else. An existing cluster keeps its own.
    ours = ray_session.interpreter() if address in (None, "local") else {}
    ray.init(address=address, namespace="serve", include_dashboard=False, runtime_env=ours or None)
    # Two Serve proxies can listen on the same port, and each would get some of the requests.
    with socket.socket() as s:
        if not serve.status().proxies and s.connect_ex(("127.0.0.1", port)) == 0:
            raise click.ClickException(f"port: something listens on {port} already. Take another: port={port + 1}")
    serve.start(http_options={"port": port, "request_timeout_s": timeout_s + GRACE_S})
    # Ray's own handler prints a stack trace and sets an alarm that aborts the process 3 s later, whatever it is doing.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


GRACE_S = 30.0
"""Seconds beyond timeout_s after which the proxy gives up on a request that no replica has answered."""


def _drain(name: str) -> None:
    import ray
    from ray import serve

    if not ray.is_initialized():
        return
    signal.alarm(0)  # cancels the alarm of Ray's handler, if that handler was still installed
    try:
        print("Finishing the answers under way; a second signal stops at once.", file=sys.stderr, flush=True)
        serve.delete(name, _blocking=False)  # blocking, it would wait for a minute at most
        while name in serve.status().applications:
            time.sleep(0.2)
    except SystemExit:
        print("Stopped at once.", file=sys.stderr, flush=True)
