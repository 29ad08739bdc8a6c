"""Opens a shell, or runs a command, on a node of the cluster.

    python -m cluster ssh NODE [COMMAND ...]

NODE: its name in `python -m cluster status` (vast-12345). Uses the cluster's own key, and the host key pinned at the first login to
the node. The exit code is the command's.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys

from cluster.money.ledger import cluster_of, root
from cluster.node.key_folder import Folder
from cluster.sweep import everything
from lib.errors import nearest


def main(argv: list[str]) -> int:
    """Returns the exit code of ssh. 2: no such node, it has no SSH yet, or this machine doesn't have its cluster's key."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster ssh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("node", help="such as vast-12345")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="command to run on the node (default: a shell)")
    args = parser.parse_args(argv)
    found, without_key, failed = everything()
    rentals = {f"{r.market}-{r.id}": r for r in found}
    if args.node not in rentals:
        for why in [*without_key, *failed]:
            print(f"Left out: {why}", file=sys.stderr)
        there = nearest(args.node, rentals) or (f" There are: {', '.join(rentals)}." if rentals else "")
        return _no(f"No market lists a rental {args.node} of ours.{there}")
    rental = rentals[args.node]
    cluster = cluster_of(rental.label)
    if rental.ssh is None or rental.state != "running":
        return _no(f"{args.node} can't be logged in to: it is {rental.state} ({rental.why}).")
    if not (root() / cluster / "key").exists():
        return _no(
            f"{args.node} belongs to {cluster}, whose key ({root() / cluster / 'key'}) is on the machine that leads it."
        )
    shell = Folder(cluster).ssh(args.node, rental.ssh)
    command = [shlex.join(args.command)] if len(args.command) > 1 else args.command
    return subprocess.call([*shell, *(["-t"] if sys.stdin.isatty() and not command else []), *command])


def _no(why: str) -> int:
    print(f"python -m cluster ssh: {why}", file=sys.stderr)
    return 2
