"""The report's figures as inline SVG, small enough to be readable on a phone.

Colours are CSS variables of the page (--ink, --soft, --line, --run-0 …), so the same figure works in light and dark mode.
"""

from __future__ import annotations

import io
import re
from typing import Any

from lib.evals.report.schema import Calibration, Curve, Metric

# matplotlib needs actual colours; each is a placeholder that is replaced by a variable in the SVG.
INK, SOFT, LINE = "#010101", "#020202", "#030303"
RUNS = [f"#0505{i:02x}" for i in range(8)]
NAMES = {INK: "--ink", SOFT: "--soft", LINE: "--line", **{c: f"--run-{i}" for i, c in enumerate(RUNS)}}

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
}


def intervals(rows: list[tuple[str, Metric, int]], bar: float | None = None) -> str:
    """Draws dots with whiskers, one row per (label, metric, colour number). bar: a value to compare with, as a dashed line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    share = rows[0][1].kind == "proportion"
    figure, ax = new_figure(3.5, 0.55 + 0.34 * len(rows))
    for y, (_, m, colour) in enumerate(rows):
        ends = (m.value if m.low is None else m.low, m.value if m.high is None else m.high)
        ax.plot(ends, (y, y), color=RUNS[colour % 8], linewidth=2.4, solid_capstyle="round")
        ax.plot([m.value], [y], "o", color=RUNS[colour % 8], markersize=7.5, zorder=3)
    if bar is not None:
        ax.axvline(bar, color=SOFT, linewidth=1, linestyle=(0, (3, 3)), zorder=0)
    ax.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    ax.tick_params(axis="y", colors=INK)
    ax.set_ylim(len(rows) - 0.45, -0.55)
    if share:
        ax.set_xlim(-0.02, 1.02)
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    else:
        numbers = [x for _, m, _ in rows for x in (m.value, m.low, m.high) if x is not None] + ([bar] if bar else [])
        low, high = min(0.0, *numbers), max(*numbers, 0.0)
        if min(numbers) > 0.5 * high:  # a scale from zero would squeeze the differences
            low = min(numbers) - 0.35 * (high - min(numbers) or high or 1)
        ax.set_xlim(low, high + 0.06 * (high - low or 1))
        ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.grid(axis="x")
    assert isinstance(figure, Figure)
    return as_svg(figure, "; ".join(f"{label}: {m.value:.3g}" for label, m, _ in rows))


def curves(lines: list[Curve], colour: int) -> str:
    """Draws values over steps: training as a line, held-out as a line with dots."""
    from matplotlib.ticker import MaxNLocator

    figure, ax = new_figure(3.5, 2.05)
    for c in lines:
        held = c.name.startswith("held-out")
        look = (
            {"marker": "o", "markersize": 4.5, "linewidth": 1.4, "color": INK}
            if held
            else {"linewidth": 1.9, "color": RUNS[colour % 8]}
        )
        ax.plot(c.steps, c.values, label=c.name, solid_capstyle="round", **look)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel("step")
    ax.set_ylim(bottom=0 if min(min(c.values) for c in lines) >= 0 else None)
    ax.grid(axis="y")
    ax.margins(x=0.02)
    return as_svg(figure, "; ".join(f"{c.name} from {c.values[0]:.3g} to {c.values[-1]:.3g}" for c in lines))


MARKERS = "os^DvPX*"
"""Assigned to decodings in order of appearance; colours stand for runs."""


def frontier(points: list[tuple[str, float, Metric, int]], higher: bool) -> str:
    """Draws (decoding, seconds per answer, metric, colour number) with whiskers, and a line along the Pareto frontier."""
    figure, ax = new_figure(3.5, 2.7)
    for mark, (_, x, m, colour) in zip(_marks(ax, [p[0] for p in points]), points, strict=True):
        ends = (m.value if m.low is None else m.low, m.value if m.high is None else m.high)
        ax.plot((x, x), ends, color=RUNS[colour % 8], linewidth=1.4, alpha=0.4)
        ax.plot([x], [m.value], mark, color=RUNS[colour % 8], markersize=6)
    best, line = None, []
    for _, x, m, _ in sorted(points, key=lambda p: (p[1], -p[2].value if higher else p[2].value)):
        if best is None or (m.value > best if higher else m.value < best):
            best = m.value
            line.append((x, m.value))
    ax.plot(*zip(*line, strict=True), color=SOFT, linewidth=1, linestyle=(0, (3, 3)), zorder=0)
    ax.set_xscale("log")
    _plain_log(ax, [x for _, x, _, _ in points])
    ax.set_xlabel("seconds per answer")
    ax.grid()
    ax.margins(x=0.08, y=0.12)
    return as_svg(figure, "; ".join(f"{m.run} {name}: {m.value:.3g} in {x:.3g} s" for name, x, m, _ in points))


def plane(points: list[tuple[str, Metric, Metric, int]]) -> str:
    """Draws (decoding, x, y, colour number): two proportions against each other, with both intervals."""
    from matplotlib.ticker import PercentFormatter

    figure, ax = new_figure(3.5, 3.2)
    for mark, (_, x, y, colour) in zip(_marks(ax, [p[0] for p in points]), points, strict=True):
        ax.plot((x.low, x.high), (y.value, y.value), color=RUNS[colour % 8], linewidth=1.4, alpha=0.4)
        ax.plot((x.value, x.value), (y.low, y.high), color=RUNS[colour % 8], linewidth=1.4, alpha=0.4)
        ax.plot([x.value], [y.value], mark, color=RUNS[colour % 8], markersize=6)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("safe prompts refused")
    ax.set_ylabel("unsafe prompts answered")
    ax.grid()
    texts = (f"{x.run} {name}: refuses {x.value:.0%}, answers {y.value:.0%}" for name, x, y, _ in points)
    return as_svg(figure, "; ".join(texts))


def calibration(c: Calibration, colour: int) -> str:
    """Draws the share of correctly ordered pairs against mean confidence, from 50%, with the diagonal."""
    from matplotlib.ticker import PercentFormatter

    figure, ax = new_figure(3.5, 2.5)
    ax.plot((0.5, 1), (0.5, 1), color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
    ax.plot(c.predicted, c.right, "o-", color=RUNS[colour % 8], markersize=5, linewidth=1.4)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    ax.set_xlim(0.49, 1.01)
    ax.set_xlabel("mean confidence")
    ax.set_ylabel("pairs ordered correctly")
    ax.grid()
    return as_svg(figure, "; ".join(f"sure {p:.0%}: right {r:.0%}" for p, r in zip(c.predicted, c.right, strict=True)))


def _marks(ax, names: list[str]) -> list[str]:
    """Returns a marker per name, identical for identical names; draws a legend above the plot if there are several names."""
    from matplotlib.lines import Line2D

    mark = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(dict.fromkeys(names))}
    if len(mark) > 1:
        shapes = [Line2D([], [], color=SOFT, marker=m, linestyle="", markersize=5, label=n) for n, m in mark.items()]
        place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "ncols": 3, "borderpad": 0.1}
        ax.legend(handles=shapes, frameon=False, fontsize=7.5, handletextpad=0.1, columnspacing=0.9, **place)
    return [mark[name] for name in names]


def _plain_log(ax, values: list[float]) -> None:
    """Sets ticks at the ends and the middle of a log axis, in plain numbers."""
    from matplotlib.ticker import FixedLocator, NullFormatter

    low, high = min(values), max(values)
    ticks = sorted({float(f"{v:.2g}") for v in (low, (low * high) ** 0.5, high)})
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """Returns an empty matplotlib (Figure, Axes) in the report's style. width, height: in inches; in a card of the page, 1 inch is about
    95 CSS pixels."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def as_svg(figure: Any, description: str) -> str:
    """Returns a figure as inline SVG whose placeholder colours are variables of the page. description: read out by screen readers."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(
            out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r' id="(?:figure|axes|patch|line2d|matplotlib\.axis|xtick|ytick|text|LineCollection)_\d+"', "", svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    for colour, name in NAMES.items():
        svg = svg.replace(colour, f"var({name})")
    text = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    head = r'<svg[^>]*?viewBox="([^"]+)"[^>]*>'
    return re.sub(head, lambda m: f'<svg viewBox="{m[1]}" role="img" aria-label="{text}">', svg, count=1)
