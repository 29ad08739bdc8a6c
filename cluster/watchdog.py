"""How watchdog.sh, which ends a rental without a head, gets onto it."""

from __future__ import annotations

from pathlib import Path

HEARTBEAT = "/tmp/shoestring/heartbeat"
"""What a head that is connected touches on the rental, more often than the watchdog's time."""

SCRIPT = Path(__file__).with_suffix(".sh")


def start(seconds: float, head: tuple[str, int] | None = None) -> str:
    """Shell commands for Order.start. head: where the rental can reach the head itself, in a flat network."""
    arguments = f"{int(seconds)} {head[0]} {head[1]}" if head else f"{int(seconds)}"
    return (
        "mkdir -p /tmp/shoestring\n"
        f"cat > /tmp/shoestring/watchdog.sh << 'SHOESTRING'\n{SCRIPT.read_text(encoding='utf-8')}SHOESTRING\n"
        f"nohup setsid sh /tmp/shoestring/watchdog.sh {arguments} > /tmp/shoestring/watchdog.log 2>&1 < /dev/null &\n"
    )
