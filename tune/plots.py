"""The figures of a search's page as inline SVG, in the look of the evaluation's (lib/evals/report/plots.py).

Every function takes plain numbers and returns an <svg> element. Values that aren't finite are left out or, on an axis that is cut off, drawn
at its worse end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lib.evals.report.plots import INK, LINE, RUNS, SOFT, as_svg, new_figure

SCALE = [f"#0606{i:02x}" for i in range(7)]
"""Placeholders for --scale-0 (worst) to --scale-6 (best) of the page."""
CARD = "#060610"
"""Placeholder for --card, the colour behind a figure."""
BEST, STOP = RUNS[1], RUNS[2]
WIDE, HALF = 10.5, 5.0
"""Inches: a figure over the page's whole width, or half of it."""
LOG_FROM = 20.0
"""Ratio of the largest to the smallest cost from which the axis is logarithmic."""


@dataclass(frozen=True)
class Line:
    """A trial as the figures show it."""

    number: int
    values: list[tuple[int, float]]
    """(step, value) of each report."""
    start: bool = False
    best: bool = False
    stopped: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> float:
        return self.values[-1][1]

    @property
    def name(self) -> str:
        return "start" if self.start else str(self.number)


@dataclass(frozen=True)
class Axis:
    """An axis of the parallel coordinates. listed: the choices as text; otherwise low to high."""

    key: str
    name: str
    listed: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    def place(self, value: Any, text: str) -> float:
        """Returns a value's height from 0 to 1. text: the value as in `listed`."""
        if self.listed:
            return self.listed.index(text) / max(1, len(self.listed) - 1)
        at, low, high = (math.log(x) if self.log else float(x) for x in (value, self.low, self.high))
        return (at - low) / (high - low or 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        if self.listed:
            every = math.ceil(len(self.listed) / 12)
            return [(self.place(None, text), _cut(text)) for text in self.listed[::every]]
        middle = (self.low * self.high) ** 0.5 if self.log else (self.low + self.high) / 2
        return [(h, f"{x:.3g}") for h, x in ((0.0, self.low), (0.5, middle), (1.0, self.high))]


def limits(values: Iterable[float], mode: str) -> tuple[float, float, bool]:
    """Returns (low, high, whether values lie outside) of an axis that shows the better three quarters of the values and cuts off what is
    much worse, so that one diverged trial doesn't flatten the others."""
    sign = 1.0 if mode == "min" else -1.0
    ordered = sorted(sign * v for v in values if math.isfinite(v))
    best, quarter, worst = ordered[0], ordered[3 * (len(ordered) - 1) // 4], ordered[-1]
    end = min(worst, best + 3 * ((quarter - best) or (worst - best)))
    pad = 0.05 * (end - best) or 0.05 * abs(best) or 0.05
    low, high = sorted((sign * (best - pad), sign * (end + pad)))
    return low, high, worst > end + pad


def curves(lines: Sequence[Line], metric: str, mode: str) -> str:
    """Draws each trial's metric over its steps, with a cross where it was stopped and its number at its end."""
    from matplotlib.ticker import MaxNLocator

    figure, ax = new_figure(WIDE, 4.2)
    low, high, _ = limits([v for line in lines for _, v in line.values], mode)
    ax.set_ylim(low, high)
    for line in sorted(lines, key=lambda x: (x.best, x.start)):
        colour, width = (BEST, 2.4) if line.best else (INK, 1.8) if line.start else (SOFT, 1.0)
        shown = [(s, v) for s, v in line.values if math.isfinite(v)]
        dash = (0, (4, 2)) if line.start else "-"
        ax.plot(*zip(*shown, strict=True), color=colour, linewidth=width, linestyle=dash, alpha=1 if width > 1 else 0.7)
        mark, size, edge = ("x", 6.5, STOP) if line.stopped else ("o", 5 if width > 1 else 3.5, colour)
        ax.plot(*shown[-1], mark, color=edge, markersize=size, markeredgewidth=1.6 if line.stopped else 0.5, zorder=4)
    ax.margins(x=0.04)
    first = sorted(lines, key=lambda x: (not x.best, not x.start, x.stopped))
    _label(ax, [(*[p for p in x.values if math.isfinite(p[1])][-1], x.name, _colour(x)) for x in first])
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(6))
    ax.set_xlabel("step")
    ax.set_ylabel(metric, parse_math=False)
    ax.grid(axis="y")
    return as_svg(figure, "; ".join(f"{x.name}: {x.last:.4g} at step {x.values[-1][0]}" for x in lines))


def parallel(lines: Sequence[Line], axes: Sequence[Axis], metric: str, mode: str) -> str:
    """Draws one line per trial through its value on each axis, ending at the metric, best at the top; the colour is its rank."""
    figure, ax = new_figure(WIDE, 3.8)
    low, high, _ = limits([x.last for x in lines], mode)
    end = Axis("", metric, (), *((high, low) if mode == "min" else (low, high)))
    unset = any(a.key not in x.settings for a in axes for x in lines)
    ordered = sorted(lines, key=lambda x: _worst_first(x.last, mode))
    for rank, line in enumerate(ordered):
        heights = [
            a.place(line.settings[a.key], str(line.settings[a.key])) if a.key in line.settings else -0.16 for a in axes
        ]
        heights.append(min(1.0, max(0.0, end.place(line.last, ""))) if math.isfinite(line.last) else 0.0)
        colour = SCALE[round(6 * rank / max(1, len(ordered) - 1))]
        dash, width = (0, (3, 2)) if line.stopped else "-", 3.0 if line.best else 1.5
        ax.plot(range(len(heights)), heights, color=colour, linewidth=width, linestyle=dash, zorder=2 + rank / 1000)
    ax.axis("off")
    for i, a in enumerate([*axes, end]):
        ax.plot((i, i), (0, 1), color=LINE, linewidth=1.2, zorder=1)
        up = 0.11 * (i % 2) if len(axes) > 5 else 0.0  # names of many axes in two rows
        ax.text(i, 1.07 + up, _cut(a.name, 26), ha="center", va="bottom", color=INK, fontsize=9.5, parse_math=False)
        side = {"x": i - 0.02, "ha": "right"} if i == 0 else {"x": i + 0.02, "ha": "left"}
        behind = {"facecolor": CARD, "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
        for height, text in a.ticks():
            ax.text(
                y=height, s=text, va="center", color=SOFT, fontsize=8.5, zorder=5, parse_math=False, bbox=behind, **side
            )
    if unset:
        ax.text(-0.02, -0.16, "not set", ha="right", va="center", color=SOFT, fontsize=8.5)
    ax.set_ylim(-0.22 if unset else -0.06, 1.32 if len(axes) > 5 else 1.18)
    ax.set_xlim(-0.07 * (len(axes) + 1), len(axes) + 0.07 * (len(axes) + 1))
    best = ordered[-1]
    return as_svg(figure, f"{len(lines)} trials over {', '.join(a.name for a in axes)}; best: trial {best.number}")


def importance(rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Draws (name, share, low, high) as dots with whiskers, a row each."""
    from matplotlib.ticker import PercentFormatter

    figure, ax = new_figure(HALF, 0.7 + 0.34 * len(rows))
    for y, (_, value, low, high) in enumerate(rows):
        ax.plot((low, high), (y, y), color=BEST, linewidth=2.4, solid_capstyle="round", alpha=0.55)
        ax.plot([value], [y], "o", color=BEST, markersize=7, zorder=3)
    ax.set_yticks(range(len(rows)), [_cut(name, 28) for name, *_ in rows])
    ax.tick_params(axis="y", colors=INK)
    ax.set_ylim(len(rows) - 0.45, -0.55)
    ax.set_xlim(-0.02, 1.02)
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.grid(axis="x")
    return as_svg(figure, "; ".join(f"{n}: {v:.0%} ({low:.0%} to {high:.0%})" for n, v, low, high in rows))


def frontier(
    points: Sequence[tuple[Line, float]], optimal: set[int], metric: str, mode: str, usd_per_second: float
) -> str:
    """Draws (trial, its seconds) against the metric, Pareto-optimal ones filled and joined. usd_per_second above 0 adds an axis in dollars."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    figure, ax = new_figure(HALF, 3.3)
    low, high, _ = limits([x.last for x, _ in points], mode)
    ax.set_ylim(low, high)
    seconds = [s for _, s in points]
    if min(seconds) > 0 and max(seconds) / min(seconds) > LOG_FROM:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    for x, s in points:
        on, colour = x.number in optimal, _colour(x)
        shape = "D" if x.start else "o"
        fill = (BEST if not x.start else INK) if on else "none"
        ax.plot([s], [x.last], shape, markersize=6, markerfacecolor=fill, markeredgecolor=colour if not on else fill)
    line = sorted((s, x.last) for x, s in points if x.number in optimal)
    ax.plot(*zip(*line, strict=True), color=SOFT, linewidth=1, linestyle=(0, (3, 3)), zorder=0)
    ax.margins(x=0.1)
    _label(ax, [(s, x.last, x.name, INK) for x, s in points if x.number in optimal or x.best or x.start])
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.tick_params(which="both", length=0)
    ax.set_xlabel("trial seconds")
    ax.set_ylabel(metric, parse_math=False)
    ax.grid(axis="y")
    if usd_per_second:
        top = ax.secondary_xaxis("top", functions=(lambda s: s * usd_per_second, lambda usd: usd / usd_per_second))
        top.set_xlabel("dollars", color=SOFT)
        top.tick_params(which="both", colors=SOFT, length=0)
        top.spines["top"].set_color(LINE)
        top.xaxis.set_major_locator(LogLocator() if ax.get_xscale() == "log" else MaxNLocator(4))
        top.xaxis.set_major_formatter(StrMethodFormatter("${x:,.4g}"))
        top.xaxis.set_minor_formatter(NullFormatter())
    return as_svg(figure, "; ".join(f"{x.name}: {x.last:.4g} in {s:.3g} s" for x, s in points))


def expected(random: Sequence[float], found: Sequence[float | None], metric: str) -> str:
    """Draws the expected best of k random trials (a line) and the best of the first k trials of the search (steps), over k."""
    from matplotlib.ticker import MaxNLocator

    figure, ax = new_figure(HALF, 3.3)
    there = [(k, v) for k, v in enumerate(found, 1) if v is not None]
    ax.step(*zip(*there, strict=True), where="post", color=BEST, linewidth=2, label="this search")
    ks = range(1, len(random) + 1)
    ax.plot(ks, random, color=STOP, linewidth=2, label="random search, expected")
    ax.plot([len(random)], [random[-1]], "o", color=STOP, markersize=4.5)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel("trials")
    ax.set_ylabel(metric, parse_math=False)
    ax.legend(
        frameon=False,
        fontsize=9,
        labelcolor=SOFT,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=2,
        borderpad=0.1,
    )
    ax.grid(axis="y")
    return as_svg(
        figure, f"random: {random[0]:.4g} to {random[-1]:.4g}; search: {there[0][1]:.4g} to {there[-1][1]:.4g}"
    )


def coloured(svg: str) -> str:
    """Returns the SVG with the placeholders of SCALE and CARD as variables of the page."""
    for colour, name in [(CARD, "--card"), *((c, f"--scale-{i}") for i, c in enumerate(SCALE))]:
        svg = svg.replace(colour, f"var({name})")
    return svg


def _colour(line: Line) -> str:
    return BEST if line.best else INK if line.start else SOFT


def _worst_first(value: float, mode: str) -> float:
    if not math.isfinite(value):
        return -math.inf
    return -value if mode == "min" else value


def _cut(text: str, length: int = 14) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _label(ax: Any, points: Iterable[tuple[float, float, str, str]]) -> None:
    """Writes (x, y, text, colour) right of each point inside the axes, but not where it would cover an earlier one."""
    taken: list[tuple[float, float]] = []
    inside, to_axes = ax.get_ylim(), ax.transData + ax.transAxes.inverted()
    width, height = ax.figure.get_size_inches()
    for x, y, text, colour in points:
        if not (math.isfinite(y) and inside[0] <= y <= inside[1]):
            continue
        at, up = to_axes.transform((x, y))
        if any(abs(at - a) * width < 0.3 and abs(up - b) * height < 0.15 for a, b in taken):
            continue
        taken.append((at, up))
        ax.annotate(text, (x, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8.5, color=colour)
