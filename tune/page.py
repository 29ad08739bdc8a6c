"""report.html: a search on one page that loads no other file, made from report.json alone."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import yaml

from lib.evals.report.formatting import duration
from tune import plots, random_search, space
from tune.journal import Trial
from tune.plots import Axis, Line
from tune.ranking import pareto, ranked
from tune.settings import Settings

ENDED = {"running": "cut off by the budget"}
"""How the page calls a status of the journal, if not by its own name."""
LOOK = Path(__file__).parent.parent / "lib" / "evals" / "report"
"""Where style.css.j2 is, the look of every report page."""


def html(report: dict[str, Any]) -> str:
    """Returns the page. report: the content of report.json, as tune/report.py writes it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    s = Settings.of(report["search"])
    mode, trials = report["mode"], _trials(report)
    searched = [t for t in trials if t.role != "confirm"]
    lines, curves = (_lines(trials, name, report["best"]) for name in (s.metric, s.curve))
    points = {
        t.number: (sum(a.seconds for a in _lineage(t, trials)), t.last(s.metric) or 0.0)
        for t in searched
        if t.status != "failed" and _finite(t, s.metric)
    }
    optimal = pareto(points, mode)
    figures = _figures(report, s, lines, points, optimal) if lines else {}
    if curves:
        figures["curves"] = _curves(curves, s, mode)
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, LOOK]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    ordered = ranked(searched, s.metric, mode)
    start = next((t.number for t in trials if t.role == "start"), None)
    runs = {t["number"]: t["run"] for t in report["trials"]}
    return environment.get_template("report.html.j2").render(
        r=report, s=s, run=s.run, facts=_facts(report, s, trials),
        figures={name: {**f, "svg": Markup(plots.coloured(f["svg"]))} for name, f in figures.items()},
        keys=_differing(searched), names=space.names(_differing(searched)), optimal=optimal, runs=runs,
        rows=ordered + [t for t in searched if t not in ordered], again=[t for t in trials if t.role == "confirm"],
        best=next((t for t in trials if t.number == report["best"]), None),
        without=_without(report, s), commands=_commands(report, s, ordered, runs),
        text=text, number=number, ended=lambda t: ENDED.get(t.status, t.status), usd=lambda t: usd(t.seconds, s), last=lambda t: t.last(s.metric),
        of=lambda t: "start" if t.of == start else f"trial {t.of}", short=space.short, settings=yaml.safe_dump(report["search"], sort_keys=False, allow_unicode=True),
    )  # fmt: skip


def text(value: Any) -> str:
    """Returns a setting's value as the page shows it: 0.001234, lora, null; of a schedule: 0.001 after 20, 0.002 after 30."""
    if isinstance(value, dict):
        return ", ".join(f"{text(v)} after {step}" for step, v in value.items())
    return "null" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def number(value: float | None, sign: str = "") -> str:
    """Returns a value of the metric with four decimals; – for None. sign: "+" shows the sign of a positive one as well."""
    if value is None or not math.isfinite(value):
        return "–" if value is None else str(value).replace("nan", "NaN").replace("inf", "∞")
    return f"{value:{sign}.4f}"


def usd(seconds: float, s: Settings) -> str:
    """Returns the cost of that much trial time: "$0.0123", "$4.56"."""
    cost = s.usd(seconds)
    return f"${cost:.2f}" if cost >= 1 or not cost else f"${cost:.4f}"


def _trials(report: dict[str, Any]) -> list[Trial]:
    fields = Trial.__dataclass_fields__
    return [Trial(**{k: v for k, v in t.items() if k in fields}) for t in report["trials"]]


def _finite(t: Trial, metric: str) -> bool:
    """Whether the trial's last value is a finite number."""
    value = t.last(metric)
    return value is not None and math.isfinite(value)


def _lineage(t: Trial, trials: list[Trial]) -> list[Trial]:
    """Returns the trials from whose checkpoints this one goes on, the first one first, and itself."""
    return [*(_lineage(trials[t.parent], trials) if t.parent is not None else []), t]


def _lines(trials: list[Trial], metric: str, best: int | None) -> list[Line]:
    """Returns the trials of the search and the start that have a finite value of the metric."""
    searched = [t for t in trials if t.role != "confirm"]
    return [_line(t, trials, metric, best) for t in searched if any(math.isfinite(v) for _, v in t.values(metric))]


def _line(t: Trial, trials: list[Trial], metric: str, best: int | None) -> Line:
    before = trials[t.parent].values(metric)[-1:] if t.parent is not None else []
    values = before + t.values(metric)
    return Line(t.number, values, t.role == "start", t.number == best, t.status == "stopped", t.settings)


def _differing(trials: list[Trial]) -> list[str]:
    """Returns the keys, in their order, that differ between trials of the search; all if there is only one."""
    searched = [t for t in trials if t.role == "search"]
    keys = dict.fromkeys(k for t in searched for k in t.settings)
    return [k for k in keys if len(searched) == 1 or len({repr(t.settings.get(k, "unset")) for t in searched}) > 1]


def _figures(
    report: dict[str, Any], s: Settings, lines: list[Line], points: dict[int, tuple[float, float]], optimal: set[int]
) -> dict[str, dict[str, str]]:
    """Returns {name: {svg, note}}, without those for which there are too few trials."""
    mode, trials, found = report["mode"], _trials(report), dict[str, dict[str, str]]()
    searched = [line for line in lines if not line.start]
    axes = _axes(s, [t for t in trials if t.role == "search"])
    if axes and len(searched) > 1 and any(math.isfinite(line.last) for line in searched):
        found["parallel"] = {"svg": plots.parallel(searched, axes, s.metric, mode), "note": ""}
    for name, part in (("importance", "keys"), ("importance_good", "good")):
        if keys := report["importance"][part]:
            named = space.names([k["key"] for k in keys])
            rows = [(named[k["key"]], k["value"], k["low"], k["high"]) for k in keys]
            found[name] = {"svg": plots.importance(rows), "note": ""}
    if len(points) > 1:
        there = [(line, points[line.number][0]) for line in lines if line.number in points]
        svg = plots.frontier(there, optimal, s.metric, mode, s.usd(1.0))
        found["frontier"] = {"svg": svg, "note": ""}
    random = random_search.values(random_search.drawn_at_random(trials, s), s.metric)
    if len(random) >= random_search.FEWEST:
        expected = random_search.expected_best(random, mode)
        so_far = random_search.best_so_far(trials, s.metric, mode)
        note = (
            f"With {len(random)} trials, random search is expected to reach {s.metric} {expected[-1]:.4f}; "
            f"this search reached {number(so_far[-1])} with {len(so_far)}."
        )
        found["random"] = {"svg": plots.expected(expected, so_far, s.metric), "note": note}
    return found


def _curves(lines: list[Line], s: Settings, mode: str) -> dict[str, str]:
    *_, cut = plots.limits([v for line in lines for _, v in line.values], s.curve_mode(mode))
    note = "Curves that leave the plot are much worse than the others." if cut else ""
    return {"svg": plots.curves(lines, s.curve, s.curve_mode(mode)), "note": note}


def _axes(s: Settings, searched: list[Trial]) -> list[Axis]:
    """Returns an axis of each key of the space that differs between trials."""
    keys, out = _differing(searched), []
    named = space.names(keys)
    for p in space.read(s.space)[0].parameters:
        if p.key in keys and p.listed:
            out.append(Axis(p.key, named[p.key], tuple(map(str, p.values))))
        elif p.key in keys:
            low, high = p.ends()
            out.append(Axis(p.key, named[p.key], (), low, high, p.kind == "loguniform"))
    return out


def _without(report: dict[str, Any], s: Settings) -> dict[str, str]:
    """Returns {name of a figure: why it is missing}."""
    only_good = f"Stopped trials have no {s.metric}, and those that finished are no random draws."
    few = f"Fewer than {random_search.FEWEST} trials with a value were drawn at random"
    exchanged = "Members of a population take over checkpoints, so their trials are no independent draws."
    why = {
        "grid": "A grid draws nothing at random, so it says nothing about random search.",
        "optuna": f"{few} (Optuna draws its first {random_search.STARTUP}), too few for an estimate.",
    }
    return {
        "importance": report["importance"]["about"],
        "random": exchanged
        if s.scheduler == "pbt"
        else only_good
        if s.curve != s.metric and s.scheduler != "none"
        else why.get(s.search, f"{few}, too few for an estimate."),
        "parallel": "Fewer than two trials with different settings have a value.",
        "frontier": "Fewer than two trials have a value.",
        "curves": f"No trial has reported {s.curve}.",
    }


def _facts(report: dict[str, Any], s: Settings, trials: list[Trial]) -> list[tuple[str, str]]:
    searched = [ENDED.get(t.status, t.status) for t in trials if t.role == "search"]
    counts = ", ".join(f"{searched.count(name)} {name}" for name in dict.fromkeys(searched)) or "none"
    again = sum(t.role == "confirm" for t in trials)
    better = "lower" if report["mode"] == "min" else "higher"
    total = _total(trials)
    cost = f", {usd(total['seconds'], s)} at ${s.usd_per_hour:g} per hour" if s.usd_per_hour else ""
    return [
        ("trials", f"{counts}; besides the start and {again} runs of the confirmation"),
        ("compared by", f"{s.metric}, {better} is better"),
        ("proposals", f"{s.search}, seed {s.seed}"),
        ("stopping", f"{s.scheduler} by {s.curve}, reports every {s.every} steps" if s.scheduler != "none" else "none"),
        ("spent", f"{total['tokens']:,} tokens, {duration(total['seconds'])} of trial time{cost}"),
        ("ended", report["ended"]),
    ]


def _total(trials: list[Trial]) -> dict[str, Any]:
    return {"seconds": sum(t.seconds for t in trials), "tokens": sum(t.tokens for t in trials)}


def _commands(report: dict[str, Any], s: Settings, ordered: list[Trial], runs: dict[int, str]) -> list[tuple[str, str]]:
    """Returns (what it does, the command) pairs."""
    out = []
    if report["best"] is not None:
        best = shlex.quote(f"{s.run}/best.yaml")
        out.append(("Train the best trial’s job", f"python jobs/{s.program}.py --config {best}"))
    out.append(("Go on with the search, for example after budget was raised", report["command"]))
    stopped = [t for t in ordered if t.status == "stopped"]
    if stopped:
        what = f"Resume a stopped trial; this is the best of them, {stopped[0].number}"
        out.append((what, f"python jobs/{s.stage}.py --resume {shlex.quote(runs[stopped[0].number])}"))
    return out
