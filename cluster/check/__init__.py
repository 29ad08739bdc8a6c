"""Checks that everything works with your keys on today's real markets: rents one box for a few minutes, for cents.

    python -m cluster check [--market runpod] [--gpu "RTX 4090|RTX 3090"] [--max-price 0.40] [--workers 2] [--store s3://BUCKET/PATH]

Shows the price and asks for confirmation; rents the cheapest suitable box in the way every job does (`cluster head`, its autoscaler,
ladder, mesh and ledger), runs the steps of cluster/check/steps.py, and destroys the box, also after a failure, Ctrl-C or a crash. The
first failure skips the remaining steps. Exit code: 0 all requested steps passed, 1 one failed, 2 the check couldn't start. The report
contains no key, address, host or user name.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path


def main(argv: list[str]) -> int:
    from cluster.check.rented import Cluster, asked_markets
    from cluster.check.steps import Check
    from cluster.head import ENDS
    from cluster.sweep import confirmed
    from lib.runtime.refusing import refusing

    args = _parser().parse_args(argv)
    found, left_out = asked_markets(args.market)
    for why in left_out.values():
        print(f"Left out: {why}", file=sys.stderr)
    if not found or (args.market and left_out):
        return 2
    with refusing("python -m cluster check"):
        cluster = Cluster(f"check-{time.strftime('%y%m%d-%H%M%S')}", _asked(args, found))
    check = Check(cluster, lambda question: args.yes or confirmed(question))
    for number in ENDS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, _interrupt)
    agreed = False
    try:
        agreed = check.run()
    except KeyboardInterrupt:
        print("\nInterrupted: the rented boxes are destroyed.", file=sys.stderr, flush=True)
    finally:
        for number in ENDS:  # no further signal may interrupt the destruction
            signal.signal(number, signal.SIG_IGN)
        check.end()
        path = Path(args.report or cluster.folder.path / "check.json")
        path.write_text(json.dumps(check.report(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    check.show()
    print(f"Report: {path}")
    return 0 if agreed and check.pipeline.passed else 1


def _interrupt(number, frame):
    raise KeyboardInterrupt


def _asked(args: argparse.Namespace, found: tuple[str, ...]):
    from cluster.check.rented import Asked

    return Asked(
        found, args.gpu, args.max_price, args.workers, args.device, args.budget, args.boot_minutes, args.store, args.download
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    from cluster.market.registry import MARKETS

    parser = argparse.ArgumentParser(
        prog="python -m cluster check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--market", action="append", choices=list(MARKETS), help="only this market (default: all with a key)")
    add("--gpu", type=_names, default=(), metavar="NAME|NAME", help="one of these GPUs (default: any)")
    add("--max-price", type=float, default=1.0, metavar="USD", help="highest $/h of a box with its disk (default: 1)")
    add("--workers", type=int, choices=(1, 2), default=1, help="2: rent a second box and exchange tensors with it")
    add("--device", choices=("gpu", "cpu"), default="gpu", help="cpu: a box without GPUs; skips the GPU steps")
    add(
        "--store",
        metavar="s3://…",
        help="a folder to which the box must be able to write; it receives this environment's AWS_* variables",
    )
    add("--budget", type=float, default=1.0, metavar="USD", help="destroy all boxes at this total cost (default: 1)")
    add(
        "--boot-minutes",
        type=float,
        default=10.0,
        metavar="N",
        help="minutes within which a box must run (default: 10)",
    )
    add("--download", metavar="URL", default=os.environ.get("SHOESTRING_DOWNLOAD"),
        help="file for measuring the box's download speed (default: torch's wheel on PyPI)")  # fmt: skip
    add("--report", metavar="FILE", help="report file (default: ~/.shoestring/<cluster>/check.json)")
    add("--yes", action="store_true", help="don't ask for confirmation")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(n.strip() for n in text.split("|") if n.strip())
