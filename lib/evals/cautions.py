"""Whether a judge's comparisons can be relied on: what it showed of itself over all its pairs, against stated limits.

A judge that only likes the first answer, the longer one, or draws lots still gives win rates with narrow intervals. So
every verdict that rests on such a judge bears its agreement of orders, and a caution for each limit that it is beyond.
"""

from __future__ import annotations

from lib.evals.formatting import percent, show
from lib.evals.report import Metric

AGREE = 0.65
"""Same verdict in both orders: GPT-4's consistency in Zheng et al. 2023, table 2. Guessing A or B gives 50%."""
FIRST = (0.4, 0.6)
"""How often the answer shown first may win; without a bias of position it is 50%."""
LONGER = (0.25, 0.75)
"""How often the longer of two answers may win. Beyond, quality and length can't be told apart, whichever it was."""
TIES = 0.75
"""Pairs left undecided, from which a win rate near 50% says nothing about the two runs."""
READ = 0.9
"""Verdicts that could be read; what is missing may not be missing at random."""


def agreement(judge: str | None, metrics: list[Metric]) -> str:
    """ ", its two orders agree on 85% [71–93] of 40 pairs", or "" for what is no language model's verdict."""
    m = _of(judge, metrics).get("orders_agree")
    return f"; the judge's two orders agree on {show(m)} of {m.n} pairs" if m else ""


def cautions(judge: str | None, metrics: list[Metric]) -> list[str]:
    """A sentence for each limit that the judge is beyond; [] for what is no language model's verdict.

    Position and length count where their interval excludes 50% too, so that few pairs give no caution by chance.
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
            "this may be a verdict on length alone. Compare the win rate at equal length."
        )
    if (m := found.get("ties")) and m.value > TIES:
        out.append(f"{percent(m.value)} of pairs were left undecided (limit {percent(TIES)}).")
    if (m := found.get("readable")) and m.value < READ:
        out.append(f"Only {percent(m.value)} of verdicts could be read (limit {percent(READ)}).")
    return out


def _of(judge: str | None, metrics: list[Metric]) -> dict[str, Metric]:
    """What `judge` showed of itself."""
    return {m.metric: m for m in metrics if m.task == "judge" and judge and m.run == judge}


def _beyond(m: Metric, limits: tuple[float, float]) -> bool:
    certain = m.low is not None and m.high is not None and not m.low <= 0.5 <= m.high
    return certain and not limits[0] <= m.value <= limits[1]
