"""Offers of all markets for which there is an API key, lowest price per operation first.

    python -m cluster offers --gpu "RTX 4090|A100" --max-price 0.40 --spot

$/h effective is what a rung of a ladder would pay (ladder.py): (bid or price + disk) ÷ reliability. $/EFLOP divides that by
the manufacturer's dense bfloat16 speed: it ranks GPUs, but doesn't predict a job's cost.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict

from cluster.market import gpus, ladder, registry
from cluster.market.base import MarketError, Offer


def main(argv: list[str]) -> int:
    """Returns the exit code. 0: there are offers. 1: there are none. 2: a wrong option, or no market answered."""
    args = _parser().parse_args(argv)
    rungs, left_out = [], {}
    for name in args.market or registry.MARKETS:
        try:
            market = registry.find(name)
        except ValueError as e:
            left_out[name] = str(e)
            continue
        kinds = [spot for spot in args.spot if market.has_spot or not spot]
        if not kinds:
            left_out[name] = f"{name} has no spot offers. To see its others: --on-demand"
        rungs += [(_rung(args, name, spot), market) for spot in kinds]
    rows: list[tuple[ladder.Rung, Offer]] = []
    for rung, market in rungs:
        try:
            rows += [(rung, o) for o in ladder.ranked(rung, market.offers(rung.want(args.disk)))]
        except MarketError as e:
            left_out[rung.market] = str(e)
    rows.sort(key=lambda row: (math.inf if (w := ladder.usd_per_eflop(*row)) is None else w, ladder.effective(*row)))
    if args.json:
        shown = [
            asdict(o) | {"usd_per_hour_effective": ladder.effective(r, o), "usd_per_eflop": ladder.usd_per_eflop(r, o)}
            for r, o in rows
        ]
        print(json.dumps({"offers": shown, "left_out": left_out}, indent=1))
    else:
        _print(rows, args.limit)
    for why in left_out.values():
        print(f"Left out: {why}", file=sys.stderr)
    asked = {r.market for r, _ in rungs} - left_out.keys()
    if not rows and asked:
        print(f"{' and '.join(sorted(asked))} {'has' if len(asked) == 1 else 'have'} no such machine.", file=sys.stderr)
        for name in args.gpu:
            if hint := gpus.mistaken(name):
                print(f"--gpu: is {name} a GPU?{hint}", file=sys.stderr)
    return 0 if rows else 1 if asked else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster offers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--gpu",
        type=_names,
        default=(),
        metavar="NAME|NAME",
        help="one of these GPUs; A100 includes all its variants (default: any)",
    )
    add("--count", type=int, default=1, metavar="N", help="GPUs in the machine; 0: a machine without (default: 1)")
    add(
        "--max-price",
        type=float,
        default=math.inf,
        metavar="USD",
        help="maximum $/h of the whole machine, disk included",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--spot", dest="spot", action="store_const", const=(True,), default=(True, False), help="only spot offers"
    )
    kind.add_argument(
        "--on-demand", dest="spot", action="store_const", const=(False,), help="only on-demand offers (default: both)"
    )
    add("--bid", type=float, default=1.1, metavar="FACTOR", help="our bid, as a multiple of the lowest (default: 1.1)")
    add("--memory", type=float, metavar="GB", help="minimum memory of each GPU")
    add("--cpus", type=int, default=0, metavar="N", help="minimum number of virtual cores")
    add("--disk", type=float, default=20.0, metavar="GB", help="disk size included in the price (default: 20)")
    add(
        "--cuda",
        type=float,
        metavar="VERSION",
        help="minimum CUDA version that the host's driver supports, such as 12.8",
    )
    add("--download", type=float, default=200.0, metavar="MBPS", help="minimum Mb/s from the internet; RunPod doesn't report it (default: 200)")  # fmt: skip
    add("--unverified", action="store_true", help="include hosts that Vast hasn't verified")
    add("--datacenter", action="store_true", help="only Vast's certified data centres and RunPod's Secure cloud")
    add("--reliability", type=float, metavar="0-1", help="minimum reliability as rated by Vast; RunPod doesn't rate it")
    add("--region", action="append", default=[], metavar="CC", help="two-letter country code; may be repeated")
    add("--market", action="append", choices=list(registry.MARKETS), help="may be repeated (default: all)")
    add("--limit", type=int, default=30, metavar="N", help="maximum rows of the table (default: 30)")
    add("--json", action="store_true", help="print all offers with every field as JSON")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(n.strip() for n in text.split("|") if n.strip())


def _rung(args: argparse.Namespace, market: str, spot: bool) -> ladder.Rung:
    return ladder.Rung(
        market=market,
        max_usd_per_hour=args.max_price,
        gpus=args.gpu,
        count=args.count,
        spot=spot,
        bid=args.bid,
        gpu_memory_gb=args.memory,
        cpus=args.cpus,
        min_cuda=args.cuda,
        min_reliability=args.reliability,
        min_download_mbps=args.download,
        verified=not args.unverified,
        datacenter=args.datacenter,
        regions=tuple(args.region),
    )


def _print(rows: list[tuple[ladder.Rung, Offer]], limit: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("market", "", "GPU", "GB", "cores"):
        table.add_column(name, justify="left" if name in ("market", "", "GPU") else "right", no_wrap=True)
    for name in ("$/h", "disk", "effective", "$/EFLOP", "reliable"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("region", overflow="ellipsis", no_wrap=True)
    for rung, o in rows[:limit]:
        work = ladder.usd_per_eflop(rung, o)
        table.add_row(
            o.market,
            "spot" if o.spot else "on demand",
            f"{o.count} × {o.gpu}" if o.count else "none",
            f"{o.gpu_memory_gb:g}" if o.count else "",
            f"{o.cpus:g}" if o.cpus else "",
            f"{o.usd_per_hour:.3f}",
            f"{o.disk_usd_per_hour:.4f}",
            f"{ladder.effective(rung, o):.3f}",
            "?" if work is None or not o.count else f"{work:.2f}",
            f"{o.reliability:.3f}" if o.reliability < 1 else "",
            o.region if o.public_ip else f"{o.region} (Community)",
        )
    if rows:
        Console(width=None if sys.stdout.isatty() else 160).print(table)
    if len(rows) > limit:
        print(f"and {len(rows) - limit} more: --limit {len(rows)}")
