"""python -m cluster COMMAND"""

from __future__ import annotations

import importlib
import sys

from cluster.money.journal import Damaged

COMMANDS = {
    "offers": "offers of all markets with their prices",
    "plan": "memory, hours and dollars of a job, before anything is rented",
    "check": "rents one node for a few minutes and checks that every part works",
    "head": "makes this machine the head, which rents workers",
    "status": "nodes, jobs and network links",
    "cost": "cost by job, stage and node",
    "ssh": "a shell or a command on a node",
    "sweep": "lists rentals left behind, and ends them",
}
"""Command → summary. Each command is `main(argv) -> exit code` in the module of the same name."""


def main(argv: list[str]) -> int:
    from lib.errors import nearest

    if not argv or argv[0] in ("-h", "--help"):
        print(
            "python -m cluster COMMAND [--help]\n\n"
            + "\n".join(f"  {name:<8} {what}" for name, what in COMMANDS.items())
        )
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(f"python -m cluster: there is no command {argv[0]}.{nearest(argv[0], COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f"cluster.{argv[0]}").main(argv[1:])
    except Damaged as e:
        print(f"python -m cluster {argv[0]}: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
