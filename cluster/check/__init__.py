"""Does it work for real, with your keys, on today's markets? One box for a few minutes, for cents.

    python -m cluster check [--market runpod] [--gpu "RTX 4090|RTX 3090"] [--max-price 0.40] [--workers 2] [--store s3://BUCKET/PATH]

Shows the price and asks; rents the cheapest box that fits, on the path that every job takes (`cluster head`, its autoscaler, ladder,
mesh and ledger), goes through the steps below, and destroys it, also after a failure, Ctrl-C or a crash. Steps after a failed one
aren't reached. Exit code: 0 all that was asked for passed, 1 it didn't, 2 it couldn't begin. The report holds no key, address, host or
user name.
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
    from lib.cli import refusing

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
        print("\nInterrupted: what was rented is destroyed.", file=sys.stderr, flush=True)
    finally:
        for number in ENDS:  # what is being ended now, is ended
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
    from cluster.markets import MARKETS

    parser = argparse.ArgumentParser(
        prog="python -m cluster check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--market", action="append", choices=list(MARKETS), help="only this one (default: all with a key)")
    add("--gpu", type=_names, default=(), metavar="NAME|NAME", help="any of these (default: any)")
    add("--max-price", type=float, default=1.0, metavar="USD", help="$/h of a box with its disk (default: 1)")
    add("--workers", type=int, choices=(1, 2), default=1, help="2: a second box, with which tensors are exchanged")
    add("--device", choices=("gpu", "cpu"), default="gpu", help="cpu: a box without GPUs; its driver isn't asked for")
    add(
        "--store",
        metavar="s3://…",
        help="where the box must be able to write; AWS_* of this environment are given to it",
    )
    add("--budget", type=float, default=1.0, metavar="USD", help="all of it is destroyed at this cost (default: 1)")
    add("--boot-minutes", type=float, default=10.0, metavar="N", help="a box must run by then (default: 10)")
    add("--download", metavar="URL", default=os.environ.get("SHOESTRING_DOWNLOAD"),
        help="what the box's download is measured with (default: torch's wheel on PyPI)")  # fmt: skip
    add("--report", metavar="FILE", help="default: ~/.shoestring/<cluster>/check.json")
    add("--yes", action="store_true", help="don't ask")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(n.strip() for n in text.split("|") if n.strip())
