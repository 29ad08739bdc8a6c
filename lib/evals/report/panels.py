"""The report's figures, as dicts of title, note and svg; lib/evals/report/plots.py draws them."""

from __future__ import annotations

from lib.evals.report import plots
from lib.evals.report.formatting import number, percent, show
from lib.evals.report.schema import Metric, Report
from lib.evals.report.summary import label


def colours(report: Report) -> dict[str, int]:
    """Returns {run: colour number}, the same in every figure, table and sample."""
    names = dict.fromkeys([r.name for r in report.runs] + [m.run for m in report.metrics])
    return {name: i % 8 for i, name in enumerate(names)}


def scores(report: Report) -> list[dict]:
    """Returns one figure per headline metric, with a row per run."""
    colour = colours(report)
    found: dict[tuple, dict] = {}
    for m in report.metrics:
        if not m.headline and m.metric != "perplexity":
            continue
        key = (m.task, m.metric, m.decoding, m.versus, None if m.metric == "win_rate" else m.judge)
        panel = found.setdefault(key, {"rows": [], "m": m})
        panel["rows"].append((f"by {m.judge}" if m.metric == "win_rate" and m.judge else m.run, m, colour[m.run]))
    out = []
    for panel in found.values():
        m, bar, rows = panel["m"], None, panel["rows"]
        title = label(m)
        bar, what = m.chance, "chance, "
        if m.metric == "win_rate":
            many = len({r[1].run for r in rows}) > 1
            rows = [(f"{r[1].run} {r[0]}" if many else r[0], *r[1:]) for r in rows]
            title = f"{'' if m.task == 'win_rate' else m.task + ': '}{'win rate' if many else m.run + ' wins'} over {m.versus}"
        elif m.metric == "preference_accuracy":
            bar, what = report.settings.get("accuracy_floor"), "the floor, "
        elif m.metric == "kl":
            bar, what = report.settings.get("kl_ceiling"), ""
        words = {"higher": ", higher is better", "lower": ", lower is better"}.get(m.better, "")
        if bar is not None:
            words += f"; dashed: {what}{percent(bar) if m.kind == 'proportion' else f'{bar:g}'}"
            words += f"; {chance(m)}" if m.chance not in (None, bar) else ""
        out.append({"title": title, "note": f"n={m.n}{words}", "svg": plots.intervals(rows, bar)})
    return out


def chance(m: Metric) -> str:
    """Returns "chance 25%", or "" if the score of random guessing is not known."""
    return "" if m.chance is None else f"chance {percent(m.chance)}"


def losses(report: Report) -> list[dict]:
    """Returns each run's loss and accuracy over training steps, with first and last values in the note."""
    colour = colours(report)
    out = []
    for r in report.runs:
        for kind in ("loss", "accuracy"):
            lines = [c for c in r.curves if c.name.endswith(kind)]
            if lines:
                shown = [dict.fromkeys((number(c.values[0]), number(c.values[-1]))) for c in lines]
                ends = "; ".join(f"{c.name} {' → '.join(v)}" for c, v in zip(lines, shown, strict=True))
                out.append({"run": r.name, "title": kind, "note": ends, "svg": plots.curves(lines, colour[r.name])})
    return out


def heat_map(report: Report) -> list[dict]:
    """Returns rows {label, chance, cells: {run: (text, strength from 0 to 1)}} of the headline metrics that two or more runs have.

    Strength is the value itself for a proportion, otherwise its position between the worst and best of the row. Reward runs and
    judges, which have none of these scores, get no row or column.
    """
    models = {r.name for r in report.runs if r.makes != "reward"}
    rows: dict[tuple, dict[str, Metric]] = {}
    for m in report.metrics:
        if m.headline and not m.versus and m.better and m.run in models:
            rows.setdefault((m.task, m.metric, m.decoding, m.judge), {})[m.run] = m
    out = []
    for cells in rows.values():
        values = [m.value for m in cells.values()]
        first = next(iter(cells.values()))
        low, high = (0.0, 1.0) if first.kind == "proportion" else (min(values), max(values))
        place = lambda v, low=low, high=high: (v - low) / (high - low) if high > low else 0.5  # noqa: E731
        better = (lambda x: x) if first.better == "higher" else (lambda x: 1 - x)
        if len(cells) > 1:
            strengths = {run: (show(m), round(better(place(m.value)), 3)) for run, m in cells.items()}
            out.append({"label": label(first), "chance": chance(first), "cells": strengths})
    return out if len(out) > 1 else []


def frontiers(report: Report) -> list[dict]:
    """Returns quality against seconds of work per answer, one figure per task with two or more runs or decodings."""
    colour, cost, found = colours(report), {}, {}
    for m in report.metrics:
        if m.metric == "seconds_per_answer":
            cost[m.task, m.run, m.decoding] = m.value
    for m in report.metrics:
        at = cost.get((m.task, m.run, m.decoding))
        if m.headline and at and not m.versus and not m.judge:
            found.setdefault((m.task, m.metric), []).append((m.decoding, at, m, colour[m.run]))
    price = report.settings.get("usd_per_hour")
    per = f"; 1 s = ${price / 3.6:.3g} per 1,000 answers" if price else ""
    return [
        {
            "title": f"{task}: {metric} against time",
            "note": f"{_better(points[0][2])} and left is better; line: what no other beats{per}",
            "svg": plots.frontier(points, points[0][2].better == "higher"),
        }
        for (task, metric), points in found.items()
        if len(points) > 1
    ]


def _better(m: Metric) -> str:
    return "up" if m.better == "higher" else "down"


def refusals(report: Report) -> list[dict]:
    """Returns over-refusal of safe prompts against compliance with unsafe ones, a point per run and decoding."""
    found: dict[tuple, dict[str, Metric]] = {}
    for m in report.metrics:
        if m.task == "xstest" and m.metric in ("over_refusal", "compliance") and m.judge is None:
            found.setdefault((m.run, m.decoding), {})[m.metric] = m
    points = [(how, v["over_refusal"], v["compliance"]) for (_, how), v in found.items() if len(v) == 2]
    if len(points) < 2:
        return []
    colour = colours(report)
    drawn = [(name, x, y, colour[x.run]) for name, x, y in points]
    note = "both should be small: down and left is better"
    return [{"title": "refuses too much, or too little", "note": note, "svg": plots.plane(drawn)}]


def calibrations(report: Report) -> list[dict]:
    """Returns the reward model's confidence against its accuracy."""
    colour = colours(report)
    return [
        {
            "title": f"{c.run}: is it as right as it is sure?",
            "note": f"{len(c.predicted)} groups of {c.n} pairs; expected calibration error {100 * c.error:.1f} points; dashed: perfect",
            "svg": plots.calibration(c, colour.get(c.run, 0)),
        }
        for c in report.calibrations
    ]
