"""Formats numbers for the report: values with intervals, differences, shares and durations."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

from lib.evals.report.schema import Comparison, Metric

FINE = 0.05
"""Intervals narrower than this are shown with one decimal."""


def show(m: Metric) -> str:
    """Returns "71.5% [65–77]" or "4.21 [4.02–4.40]"."""
    if m.low is None:
        return value(m)
    digits = 1 if m.high - m.low < FINE else 0
    ends = (percent(x, digits)[:-1] if m.kind == "proportion" else number(x) for x in (m.low, m.high))
    return f"{value(m)} [{'–'.join(ends)}]"


def value(m: Metric) -> str:
    """Returns "71.5%" or "4.21"."""
    return percent(m.value) if m.kind == "proportion" else number(m.value)


def percent(share: float, digits: int = 1) -> str:
    """0.425 → 42.5%, 0.71 → 71%. Halves are rounded away from zero, so 17 of 40 is never shown as 42%."""
    return f"{_rounded(100 * share, digits)}%"


def _rounded(x: float, digits: int) -> str:
    # 9 digits first: 100 * 0.285 is 28.499999999999996
    exact = Decimal(f"{x:.9f}").quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return f"{exact or abs(exact):f}".removesuffix(".0")


def number(x: float) -> str:
    """Returns three significant digits; whole numbers with thousands separators from 1,000 on."""
    return f"{x:,.0f}" if abs(x) >= 999.5 else f"{x:.3g}" if abs(x) >= 0.001 or x == 0 else f"{x:.1e}"


def size(c: Comparison) -> str:
    """Returns the smallest detectable difference with its unit."""
    return (
        f"{_rounded(100 * c.detectable, 0)} points"
        if c.kind == "proportion"
        else f"{number(c.detectable)} {c.unit}".strip()
    )


def signed(c: Comparison) -> str:
    """Returns a difference with its interval: "+68 [+61 to +74] points"."""

    def one(x: float, digits: int) -> str:
        size = _rounded(abs(100 * x), digits) if c.kind == "proportion" else number(abs(x))
        return f"{'+' if x > 0 else '−' if x < 0 else ''}{size}"

    unit = " points" if c.kind == "proportion" else f" {c.unit}" if c.unit else ""
    ends = ""
    if c.low is not None:
        digits = 1 if c.high - c.low < FINE else 0
        ends = f" [{one(c.low, digits)} to {one(c.high, digits)}]"
    return f"{one(c.difference, 1)}{ends}{unit}"


def duration(seconds: float) -> str:
    """Returns "0.04 s", "3.1 s", "42 s" or "3 min 05 s", so that short durations stay distinguishable."""
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds >= 0.95 else f"{seconds:.1g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{round(seconds)} s" if seconds < 99.5 else f"{minutes} min {rest:02d} s"
