"""Logs of a node whose boot failed, saved in the cluster's folder (boots/NODE.log) before it is destroyed."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from cluster.market.base import Market, MarketError, Rental
from cluster.node.key_folder import Folder

BOOTS = "boot"
"""Kind of the ledger's notes {node id: Ray's state of its set-up}."""
LOGIN_S, ALL_S = 5, 15.0
COMMAND = """for f in /root/onstart.log /tmp/shoestring/watchdog.log; do [ -s $f ] && echo "== $f" && tail -n 100 $f; done
for f in /tmp/ray/session_latest/logs/raylet.out /tmp/ray/session_latest/logs/raylet.err /tmp/ray/session_latest/logs/gcs_server.out
do [ -s $f ] && echo "== $f" && tail -n 40 $f; done; echo "== nvidia-smi" && nvidia-smi; df -h /; true"""


def keep(folder: Folder, market: Market, rental: Rental, why: str) -> Path:
    """Writes the log file and returns its path. Takes at most about 20 s; the file also records what could not be fetched."""
    node = f"{rental.market}-{rental.id}"
    try:
        printed = market.logs(rental.id)
    except MarketError as e:
        printed = f"not available: {e}"
    parts = [
        f"{node}, {rental.count} x {rental.gpu}, machine {rental.machine}: {why}",
        f"{time.strftime('%F %T', time.gmtime())} UTC; it existed for {time.time() - rental.created:.0f} s",
        f"== {rental.market} reports: {rental.state}, {rental.why}",
        f"== the container's log from {rental.market}\n{printed or 'none'}",
        f"== from the node itself\n{_inside(folder, node, rental)}",
    ]
    path = folder.path / "boots" / f"{node}.log"
    path.parent.mkdir(exist_ok=True, mode=0o700)
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return path


def _inside(folder: Folder, node: str, rental: Rental) -> str:
    if rental.ssh is None:
        return "no SSH address"
    shell = folder.ssh(node, rental.ssh, BatchMode="yes", ConnectTimeout=str(LOGIN_S))
    try:
        done = subprocess.run([*shell, COMMAND], capture_output=True, timeout=ALL_S)
    except subprocess.TimeoutExpired:
        return f"no answer over SSH in {ALL_S:.0f} s"
    return (done.stdout + done.stderr).decode(errors="replace").strip()
