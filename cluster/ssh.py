"""A shell, or a command, on a box of the cluster.

    python -m cluster ssh NODE [COMMAND ...]

NODE: as `python -m cluster status` names it (vast-12345). With the cluster's own key, and the host key that was pinned when the
box was first reached. The exit code is the command's.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys

from cluster.folder import Folder
from cluster.ledger import cluster_of, root
from cluster.sweep import everything
from lib.cli import nearest


def main(argv: list[str]) -> int:
    """2: there is no such node, it has no SSH yet, or this machine has no key of its cluster; else what ssh ended with."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster ssh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("node", help="such as vast-12345")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="run there (default: a shell)")
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
            f"{args.node} is a box of {cluster}, whose key ({root() / cluster / 'key'}) is on the machine that leads it."
        )
    shell = Folder(cluster).ssh(args.node, rental.ssh)
    command = [shlex.join(args.command)] if len(args.command) > 1 else args.command
    return subprocess.call([*shell, *(["-t"] if sys.stdin.isatty() and not command else []), *command])


def _no(why: str) -> int:
    print(f"python -m cluster ssh: {why}", file=sys.stderr)
    return 2
