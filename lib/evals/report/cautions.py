"""Whether a judge's comparisons are reliable: its statistics over all compared pairs, checked against stated limits.

A judge that always prefers the first or the longer answer, or that guesses, still yields win rates with narrow intervals. So
every verdict from a language model states how often its two orders agree, with a caution for each limit exceeded.
"""

from __future__ import annotations

from lib.evals.report.formatting import percent, show
from lib.evals.report.schema import Metric

AGREE = 0.65
"""Minimum share of pairs with the same verdict in both orders: GPT-4's consistency in Zheng et al. 2023, table 2. Guessing A or
B gives 50%."""
FIRST = (0.4, 0.6)
"""Acceptable range for the share of pairs that the answer shown first wins; 50% without position bias."""
LONGER = (0.25, 0.75)
"""Acceptable range for the share of pairs that the longer answer wins. Outside it, quality and length can't be separated."""
TIES = 0.75
"""Maximum share of ties; above it, a win rate near 50% carries no information about the two runs."""
READ = 0.9
"""Minimum share of verdicts that can be parsed; missing verdicts may not be missing at random."""


def agreement(judge: str | None, metrics: list[Metric]) -> str:
    """Returns "; the judge's two orders agree on 85% [71–93] of 40 pairs", or "" if no language model judged."""
    m = _of(judge, metrics).get("orders_agree")
    return f"; the judge's two orders agree on {show(m)} of {m.n} pairs" if m else ""


def cautions(judge: str | None, metrics: list[Metric]) -> list[str]:
    """Returns a sentence for each limit that the judge exceeds; [] if no language model judged.

    For position and length the interval must also exclude 50%, so that a few pairs cause no caution by chance.
    """
    found, out = _of(judge, metrics), []
    if (m := found.get("orders_agree")) and m.value < AGREE:
        out.append(f"Only {show(m)} of verdicts stay the same when the answers change places (limit {percent(AGREE)}).")
    if (m := found.get("first_won")) and _beyond(m, FIRST):
        where, share = ("first", m.value) if m.value > 0.5 else ("second", 1 - m.value)
        limit = percent(FIRST[1])
        out.append(f"Position bias: the answer shown {where} wins {percent(share)} of the time (limit {limit}).")
    if (m := found.get("longer_won")) and _beyond(m, LONGER):
        which, share = ("longer", m.value) if m.value > 0.5 else ("shorter", 1 - m.value)
        out.append(
            f"Length: the {which} answer wins in {percent(share)} of {m.n} decided pairs (limit {percent(LONGER[1])}), so "
            "this may be a verdict on length alone. Compare the length-controlled win rate."
        )
    if (m := found.get("ties")) and m.value > TIES:
        out.append(f"{percent(m.value)} of pairs were left undecided (limit {percent(TIES)}).")
    if (m := found.get("readable")) and m.value < READ:
        out.append(f"Only {percent(m.value)} of verdicts could be read (limit {percent(READ)}).")
    return out


def _of(judge: str | None, metrics: list[Metric]) -> dict[str, Metric]:
    """Returns the statistics about `judge` itself, by metric."""
    return {m.metric: m for m in metrics if m.task == "judge" and judge and m.run == judge}


def _beyond(m: Metric, limits: tuple[float, float]) -> bool:
    certain = m.low is not None and m.high is not None and not m.low <= 0.5 <= m.high
    return certain and not limits[0] <= m.value <= limits[1]
