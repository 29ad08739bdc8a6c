"""Measures the network link to a rental: round trip and bandwidth each way, over one SSH connection."""

from __future__ import annotations

import subprocess
import threading
import time
from dataclasses import dataclass

BYTES = 4_000_000
PINGS = 5
TIMEOUT_S = 30.0
SCRIPT = f"for i in $(seq {PINGS}); do read -r x; echo $x; done; head -c {BYTES} > /dev/null; echo; head -c {BYTES} /dev/zero"


@dataclass(frozen=True)
class Link:
    round_trip_ms: float
    up_mb_s: float
    """To the rental, 10^6 bytes per second."""
    down_mb_s: float


def measure(shell: list[str]) -> Link:
    """Measures the link. shell: a command that runs its last argument in a shell on the rental, such as [ssh, …, HOST].

    Raises OSError if the connection ends or the measurement takes longer than TIMEOUT_S.
    """
    p = subprocess.Popen(
        [*shell, SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    watch = threading.Timer(TIMEOUT_S, p.kill)
    watch.start()
    try:
        trips = []
        for _ in range(PINGS):
            began = time.perf_counter()
            p.stdin.write(b"x\n")
            _read(p, 2)
            trips.append(time.perf_counter() - began)
        trip = min(trips)
        began = time.perf_counter()
        _write(p, bytes(BYTES))
        _read(p, 1)
        sent = time.perf_counter()
        _read(p, BYTES)
        received = time.perf_counter()
    finally:
        watch.cancel()
        p.kill()
        p.communicate()
    return Link(trip * 1e3, BYTES / 1e6 / max(sent - began - trip, 1e-6), BYTES / 1e6 / max(received - sent, 1e-6))


def _write(p: subprocess.Popen, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[p.stdin.write(view) :]


def _read(p: subprocess.Popen, count: int) -> None:
    while count:
        got = p.stdout.read(min(count, 1 << 16))
        if not got:
            why = p.stderr.read().decode(errors="replace").strip().splitlines()
            raise OSError(why[-1] if why else "the connection ended")
        count -= len(got)
