"""Starts watchdog.sh, which ends a rental without a head, on the rental."""

from __future__ import annotations

from pathlib import Path

HEARTBEAT = "/tmp/shoestring/heartbeat"
"""File on the rental that a connected head touches more often than the watchdog's limit."""

SCRIPT = Path(__file__).with_suffix(".sh")


def start(seconds: float, head: tuple[str, int] | None = None) -> str:
    """Returns shell commands for Order.start. seconds: the watchdog's limit; head: (host, port) at which the rental reaches the head
    itself, in a flat network."""
    arguments = f"{int(seconds)} {head[0]} {head[1]}" if head else f"{int(seconds)}"
    return (
        "mkdir -p /tmp/shoestring\n"
        f"cat > /tmp/shoestring/watchdog.sh << 'SHOESTRING'\n{SCRIPT.read_text(encoding='utf-8')}SHOESTRING\n"
        f"nohup setsid sh /tmp/shoestring/watchdog.sh {arguments} > /tmp/shoestring/watchdog.log 2>&1 < /dev/null &\n"
    )
