"""Lists rentals left behind, whose cluster has no head any more, and destroys them on confirmation.

    python -m cluster sweep [CLUSTER ...] [--yes]

A cluster has a head if this machine led it in the last two minutes, or a rental that is its head runs. It has none if this machine
has its ledger and neither is true. A cluster without a ledger on this machine may be led by another one, so it is swept only if it
is named. A named cluster is always swept, even one with a head.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from typing import Literal

from cluster.cost import table
from cluster.market import registry, tags
from cluster.market.base import MarketError, Rental
from cluster.money.budget import Budget
from cluster.money.ledger import Ledger, cluster_of, clusters
from cluster.money.metered import Kept
from cluster.node import head_ledger
from lib.errors import nearest

LED_S = 120.0
"""A cluster counts as led this long after its head last listed the markets, which it does every few seconds."""


def verdict(cluster: str, rentals: list[Rental], now: float) -> tuple[Literal["led", "left", "unknown"], str]:
    """Returns whether a cluster with these rentals has a head, and the evidence."""
    here = cluster in clusters()
    asked = Ledger(cluster).polled() if here else 0.0
    if asked > now - LED_S:
        return "led", f"its head listed the markets {max(0.0, now - asked):.0f} s ago"
    heads = [r for r in rentals if tags.is_head(r.label)]
    running = [r for r in heads if r.state != "lost"]
    if running:
        return "led", f"by {running[0].market}-{running[0].id}, which is {running[0].state}"
    if heads:
        return "left", f"its head {heads[0].market}-{heads[0].id} is lost: {heads[0].why}"
    if here:
        return "left", f"last led {(now - asked) / 60:.0f} minutes ago" if asked else "its head never came up"
    return "unknown", "this machine has no ledger of it; another may lead it"


def main(argv: list[str]) -> int:
    """Returns the exit code. 0: nothing is left behind. 1: something is, or a market didn't answer. 2: a wrong name, or no API key."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cluster", nargs="*", help="sweep these clusters, even if they have a head")
    parser.add_argument("--yes", action="store_true", help="don't ask for confirmation")
    args = parser.parse_args(argv)
    found, without_key, failed = by_market()
    for why in [*without_key.values(), *failed.values()]:
        print(f"Left out: {why}", file=sys.stderr)
    if len(without_key) == len(registry.MARKETS):
        return 2
    by_cluster: dict[str, list[Rental]] = defaultdict(list)
    for rental in found:
        by_cluster[cluster_of(rental.label)].append(rental)
    asked = sorted(set(registry.MARKETS) - {*without_key, *failed})
    lists = (
        f"{' and '.join(asked)} list{'s' * (len(asked) == 1)} no"
        if asked
        else "No market could be reached to look for a"
    )
    unknown_there = f" Rentals at {' and '.join(sorted(failed))} are unknown: try again." if failed else ""
    for name in args.cluster:
        if name not in by_cluster:
            print(f"{lists} rental of {name}.{unknown_there or nearest(name, by_cluster)}", file=sys.stderr)
            return 1 if failed else 2
    if not found:
        print(f"{lists} rental of ours.{unknown_there}")
        return 1 if failed else 0
    now, doomed, unknown = time.time(), [], []
    verdicts = {name: verdict(name, rentals, now) for name, rentals in sorted(by_cluster.items())}
    for name, (kind, _) in verdicts.items():
        if name in args.cluster or (kind == "left" and not args.cluster):
            doomed.append(name)
        elif kind == "unknown" and not args.cluster:
            unknown.append(name)
    show(by_cluster, verdicts, now)
    if unknown:
        print(
            f"If no other machine leads {'it' if len(unknown) == 1 else 'them'}: python -m cluster sweep {' '.join(unknown)}"
        )
    if not doomed:
        print(f"Nothing {'else ' * bool(unknown)}is left behind{' there' * bool(failed)}.{unknown_there}")
        return 1 if failed or unknown else 0
    count, usd = sum(len(by_cluster[n]) for n in doomed), sum(rate(r) for n in doomed for r in by_cluster[n])
    if not args.yes and not confirmed(
        f"Destroy {count} rental{'s' * (count > 1)} of {', '.join(doomed)} (${usd:.3f} an hour)?"
    ):
        print("Nothing was destroyed.")
        return 1
    for name in doomed:  # a rented head's ledger is lost with it, so fetch it first
        for copy in head_ledger.fetch(name):
            if warning := copy.says(now):
                print(f"{name}: {warning}", file=sys.stderr)
    left = [r for name in doomed for r in by_cluster[name] if not _destroy(name, r)]
    return 1 if left or failed or unknown else 0


def everything() -> tuple[list[Rental], list[str], list[str]]:
    """Returns (every rental with our label; remedies for markets without a key here; errors of markets that failed)."""
    found, without_key, failed = by_market()
    return found, [*without_key.values()], [*failed.values()]


def by_market() -> tuple[list[Rental], dict[str, str], dict[str, str]]:
    """Returns (every rental with our label; {market without a key here: remedy}; {market that failed: error})."""
    found, without_key, failed = [], {}, {}
    for name in registry.MARKETS:
        try:
            found += registry.find(name).list()
        except ValueError as e:
            without_key[name] = str(e)
        except MarketError as e:
            failed[name] = str(e)
    return found, without_key, failed


def show(by_cluster: dict[str, list[Rental]], verdicts: dict[str, tuple[str, str]], now: float) -> None:
    rows = []
    for name, (kind, why) in verdicts.items():
        for r in by_cluster[name]:
            age = f"{(now - r.created) / 3600:.1f} h"
            rows.append((name, f"{r.market}-{r.id}", r.gpu, r.state, age, f"{rate(r):.3f}", kind, why))
    table(
        [("cluster", ""), ("rental", ""), ("GPU", ""), ("", ""), ("age", "r"), ("$/h", "r"), ("head", ""), ("", "")],
        rows,
    )


def rate(r: Rental) -> float:
    """Returns the dollars per hour that a rental costs now; a price that the market doesn't report counts as 0."""
    return r.disk_usd_per_hour + ((r.usd_per_hour or 0.0) if r.charged else 0.0)


def confirmed(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def _destroy(cluster: str, r: Rental) -> bool:
    """Destroys a rental and records it in the cluster's ledger, adding it if it was unknown. Returns whether that worked."""
    ledger = Ledger(cluster)
    ledger.observe(r.market, [r], time.time(), whole=False)
    try:
        Kept(registry.find(r.market), ledger, Budget()).destroy(r.id)
    except MarketError as e:
        print(f"{r.market}-{r.id} could not be destroyed: {e}", file=sys.stderr)
        return False
    print(f"{r.market}-{r.id} is destroyed.")
    return True
