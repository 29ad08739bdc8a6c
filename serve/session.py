"""The Ray that `serve run` starts, and how it ends: SIGTERM and Ctrl-C would else cut the answers that are under way."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import time
from typing import Any

import click

from lib import ray_session

PROXY = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""Where Serve's proxies, which inherit the environment, find serve/proxy.py."""


def begin(options: dict[str, Any], port: int, timeout_s: float) -> None:
    """Starts Ray and Serve for this process, or joins a cluster, as `serve run` would with its `options`.

    At the end the application is deleted first: its replicas end once their requests are answered (graceful_shutdown_timeout_s
    at most), and nobody new is let in. A second signal ends everything at once.
    """
    import ray

    if ray.is_initialized():  # --reload calls the application again
        return
    # What Serve does at Ctrl-C ends its proxies, and with them all connections.
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    # Where one of these is set, `serve run` starts Ray itself, since it knows what they mean; the port is 8000 then.
    if not any(options.get(key) for key in ("runtime_env", "runtime_env_json", "working_dir")):
        _start(options.get("address"), port, timeout_s)
    atexit.register(_drain, options.get("name") or "default")  # done before what ray registered, when it was imported


def _start(address: str | None, port: int, timeout_s: float) -> None:
    import ray
    from ray import serve

    os.environ.setdefault(PROXY, "serve.proxy:middlewares")
    os.environ.setdefault("RAY_worker_niceness", ray_session.RAY_ENV["RAY_worker_niceness"])
    # The dashboard takes longer to start than all the rest; a cluster that runs already keeps its own.
    ours = ray_session.interpreter() if address in (None, "local") else {}
    ray.init(address=address, namespace="serve", include_dashboard=False, runtime_env=ours or None)
    # Two of Serve's proxies could listen on the same port, and each would get some of the requests.
    with socket.socket() as s:
        if not serve.status().proxies and s.connect_ex(("127.0.0.1", port)) == 0:
            raise click.ClickException(f"port: something listens on {port} already. Take another: port={port + 1}")
    serve.start(http_options={"port": port, "request_timeout_s": timeout_s + GRACE_S})
    # Ray's own handler prints a stack, and sets an alarm that aborts the process 3 s later, whatever it is doing.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


GRACE_S = 30.0
"""Seconds after timeout_s at which the proxy gives up a request that no replica has answered."""


def _drain(name: str) -> None:
    import ray
    from ray import serve

    if not ray.is_initialized():
        return
    signal.alarm(0)  # Ray's, where its handler is still the one
    try:
        print("Finishing the answers under way; a second signal ends at once.", file=sys.stderr, flush=True)
        serve.delete(name, _blocking=False)  # which would wait for a minute at most
        while name in serve.status().applications:
            time.sleep(0.2)
    except SystemExit:
        print("Ended at once.", file=sys.stderr, flush=True)
