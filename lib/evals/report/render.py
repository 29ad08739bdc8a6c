"""Renders a Report as report.json, report.md, report.html (self-contained: it loads nothing else) and a table for the terminal."""

from __future__ import annotations

from pathlib import Path

from lib.evals.report import panels
from lib.evals.report.formatting import duration, number, show, signed, size
from lib.evals.report.panels import colours
from lib.evals.report.schema import Comparison, Overlap, Report, RunInfo, Sample, Verdict
from lib.evals.report.summary import label
from lib.evals.statistics.studentised import NO_INTERVAL
from lib.run import Run

MARKS = {True: "✔", False: "✘", None: "–"}


def write(report: Report, run: Run, examples: str) -> None:
    """Writes the report's files to <run>/reports/. report.json is written last: if it exists, the others do too."""
    run.write_text("reports/examples.jsonl", examples)
    run.write_text("reports/report.html", html(report))
    run.write_text("reports/report.md", markdown(report))
    run.write_text("reports/report.json", report.to_json())


def table(report: Report) -> list[dict]:
    """Returns the rows of the scores table: {label, chance: "chance 25%" or "", metrics: {run: Metric}, n, best: run | None,
    better, main}. main: whether it is a task's headline metric, or shows how far its judge can be trusted."""
    rows: dict[tuple, dict] = {}
    for m in report.metrics:
        row = rows.setdefault(
            (m.task, m.metric, m.decoding, m.versus, m.judge),
            {
                "label": label(m),
                "chance": panels.chance(m),
                "metrics": {},
                "n": m.n,
                "better": m.better,
                "main": m.headline or m.task in (m.metric, "judge"),
            },
        )
        row["metrics"][m.run] = m
    for row in rows.values():
        values = {run: m.value for run, m in row["metrics"].items()}
        pick = {"higher": max, "lower": min}.get(row["better"])
        distinct = len(set(values.values())) > 1
        row["best"] = pick(values, key=values.get) if pick and distinct else None
    return list(rows.values())


def html(report: Report) -> str:
    """Returns the page, which loads no other file."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = lambda found: [{**p, "svg": Markup(p["svg"])} for p in found]  # noqa: E731
    apart = lambda c: c.p_holm is not None and c.p_holm < 0.05  # noqa: E731
    differing, alike = _few(report.comparisons, apart)
    told, untold = _few(report.verdicts, lambda v: "not told apart" not in v.claim)
    more = panels.frontiers(report) + panels.refusals(report) + panels.calibrations(report)
    return environment.get_template("report.html.j2").render(
        r=report, rows=table(report), columns=columns(report), panels=drawn(panels.scores(report)),
        losses=drawn(panels.losses(report)), more=drawn(more), told=told, untold=untold,
        differing=differing, alike=alike, heat=panels.heat_map(report), colour=colours(report),
        facts=facts(report), overlaps=overlap_lines(report), show=show, number=number, duration=duration, signed=signed, label=label,
        changed=changed, badge=badge, mark=mark, without=without(report),
    )  # fmt: skip


FEW = 9
"""Up to this many verdicts or comparisons are all shown. If there are more, those without a clear result are collapsed."""


def mark(v: Verdict) -> str:
    """Returns ✔, ✘ or –, or ! if the verdict has a caution, whatever its result."""
    return "!" if v.cautions else MARKS[v.holds]


def badge(v: Verdict) -> str:
    """Returns the verdict in a word; "worse" only if it compares two runs."""
    if v.cautions:
        return "caution"
    if v.holds is None:
        return "can’t tell"
    return {(True, True): "better", (True, False): "worse", (False, True): "holds"}.get((v.compares, v.holds), "missed")


def _few(found: list, telling) -> tuple[list, list]:
    """Returns (the items to show, the items to collapse)."""
    if len(found) <= FEW:
        return found, []
    return [x for x in found if telling(x)], [x for x in found if not telling(x)]


def _named(row: dict) -> str:
    return f"{row['label']} ({row['chance']})" if row["chance"] else row["label"]


def columns(report: Report) -> list[str]:
    """Returns the names of the runs that have a column in the scores table."""
    measured = {m.run for m in report.metrics}
    return [name for name in colours(report) if name in measured]


def facts(report: Report) -> list[tuple[str, str]]:
    """Returns the provenance of the numbers: rows of (name, value)."""
    e = report.environment
    rows = [("made", report.created), ("code", e.get("git") or "not a git repository"), ("python", e.get("python", ""))]
    rows += [("packages", ", ".join(f"{k} {v}" for k, v in e.get("packages", {}).items()))]
    rows += [("hardware", e.get("hardware", "")), ("engine", e.get("engine", "")), ("seed", str(report.seed))]
    rows += [(f"task {k}", f"version {v}") for k, v in e.get("task_versions", {}).items()]
    rows += [
        (
            f"data of {k}",
            f"{d.get('format')}, {d.get('heldout_rows')} held-out rows, sha256 {str(d.get('sha256'))[:16]}",
        )
        for k, d in e.get("data", {}).items()
    ]
    if j := e.get("judge"):
        counts = f"{j['replies']} replies ({j['cached']} kept), {j['refused']} refused, {j['failed']} without an answer"
        rows.append(("judge", f"{j['model']} at {j['url']}: {counts}"))
    for r in report.runs:
        p = r.provenance
        parts = [r.path, f"parent {r.parent}" if r.parent else "", f"git {p['git']}" if p.get("git") else ""]
        parts += [f"template {r.template_sha256[:12]}" if r.template_sha256 else ""]
        parts += [f"{p['data'].get('format')} data {str(p['data'].get('sha256'))[:12]}" if p.get("data") else ""]
        parts += [str(p["hardware"]) if p.get("hardware") else "", str(p["precision"]) if p.get("precision") else ""]
        rows.append((f"run {r.name}", ", ".join(x for x in parts if x)))
    return rows


def without(report: Report) -> list[str]:
    """Returns a sentence for each metric without an interval, with the reason: "KL from sft of dpo has no interval: …"."""
    rows = [(f"{label(m)} of {m.run}", m) for m in report.metrics]
    rows += [(f"{label(c)}, {c.a} → {c.b},", c) for c in report.comparisons]
    return [f"{what.strip()} has {x.method}." for what, x in rows if x.method.startswith(NO_INTERVAL)]


def changed(run: RunInfo, report: Report) -> set[str]:
    """Returns the settings of `run` that differ from those of another run in the report."""
    others = [r for r in report.runs if r.settings and r is not run]
    return {k for k, v in run.settings.items() if any(o.settings.get(k) != v for o in others)}


def markdown(report: Report) -> str:
    """Returns the report as Markdown, for a terminal or a pull request."""
    names = columns(report)
    out = [
        f"# {report.title}",
        "",
        f"{report.created} · {report.environment.get('hardware', '')} · seed {report.seed}",
        "",
    ]
    if report.verdicts:
        out += ["## Findings", ""]
        for v in report.verdicts:
            out += [f"- {mark(v)} **{v.claim}**: {v.evidence}", *(f"  - caution: {c}" for c in v.cautions)]
        out.append("")
    out += [f"> {w}" for w in report.warnings] + ([""] if report.warnings else [])
    out += ["## Scores", "", "95% intervals in brackets.", ""]
    out += ["| | " + " | ".join(names) + " | n |", "|---|" + "---:|" * (len(names) + 1)]
    for row in table(report):
        cells = [show(row["metrics"][x]) if x in row["metrics"] else "" for x in names]
        cells = [f"**{c}**" if x == row["best"] else c for x, c in zip(names, cells, strict=True)]
        out.append(f"| {_named(row)} | " + " | ".join(cells) + f" | {row['n']} |")
    out += [line for reason in without(report) for line in ("", reason)]
    if report.comparisons:
        out += [
            "",
            "## Differences on the same examples",
            "",
            "| | | difference | p (Holm) | n |",
            "|---|---|---:|---:|---:|",
        ]
        out += [
            f"| {label(c)} | {c.a} → {c.b} | {signed(c)} | {'' if c.p_holm is None else f'{c.p_holm:.2g}'} | {c.n} |"
            for c in report.comparisons
        ]
    if report.overlaps:
        out += [
            "",
            "## Overlap with training data",
            "",
            *(f"- {k}: {v}" for k, v in overlap_lines(report)),
        ]
    for p in panels.losses(report):
        out += ["", f"{p['run']}: {p['note']}"]
    for f in report.failures:
        out += [
            "",
            f"## What went wrong: {f.task}, {f.run}{f' ({f.decoding})' if f.decoding else ''}",
            "",
            f"{f.total} answers have the worst {f.metric}.",
        ]
        out += [line for s in f.samples for line in _side_by_side(s)]
    if report.samples:
        out += ["", "## Side by side", "", report.samples_note]
    out += [line for s in report.samples for line in _side_by_side(s)]
    out += ["", "## Time", "", "| | time | steps | tokens | tokens/s |", "|---|---:|---:|---:|---:|"]
    out += [
        f"| {t.what} | {duration(t.seconds)} | {t.steps or ''} | {f'{t.tokens:,}' if t.tokens else ''} | "
        f"{f'{t.tokens_per_second:,.0f}' if t.tokens_per_second else ''} |"
        for t in report.timings
    ]
    out += ["", "## Reproduce", "", "```", *report.commands, "```", "", "## Next", "", "```", *report.next, "```", ""]
    out += ["## Provenance", "", *(f"- {k}: {v}" for k, v in facts(report)), ""]
    return "\n".join(out)


def _side_by_side(s: Sample) -> list[str]:
    head = ["", f"**{s.prompt[-1]['content']}**", ""] + ([f"- reference: `{s.reference}`"] if s.reference else [])
    return head + [f"- {run}: {answer!r}" for run, answer in s.answers.items()]


def overlap_lines(report: Report) -> list[tuple[str, str]]:
    """Returns pairs such as ("demo, sft", "0 of 200 examples")."""

    def found(o: Overlap) -> str:
        if o.found is None:
            return f"unknown: {o.note}"
        return f"{o.found} of {o.n} examples" + (f" ({o.note})" if o.note else "")

    return [(f"{o.task}, {o.run}", found(o)) for o in report.overlaps]


def comparison_lines(compared: list[Comparison]) -> list[tuple[str, str]]:
    """Returns (label, "+6 [+1 to +11] points, p = 0.02 (Holm), n=200") of each comparison. One that isn't significant also
    gives the smallest difference that its examples could have shown."""
    out = []
    for c in compared:
        p = "p < 0.001" if c.p_holm < 0.001 else f"p = {c.p_holm:.3f}"
        unseen = f"; {c.n} examples show {size(c)} and more" if c.p_holm >= 0.05 and c.detectable else ""
        out.append((label(c), f"{signed(c)}, {p} (Holm), n={c.n}{unseen}"))
    return out


def terminal(report: Report, where: str) -> None:
    """Prints verdicts, scores and the next commands."""
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    names = columns(report)
    grid = Table(
        title="scores, with 95% intervals", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    grid.add_column("")
    for x in (*names, "n"):
        grid.add_column(x, justify="right", no_wrap=True)
    for row in table(report):
        cells = [
            Text(show(row["metrics"][x]) if x in row["metrics"] else "", "bold" if x == row["best"] else "")
            for x in names
        ]
        grid.add_row(_named(row), *cells, str(row["n"]))
    console.print(grid)
    style = {True: "green", False: "red", None: "yellow"}
    for v in report.verdicts:
        look = "yellow" if v.cautions else style[v.holds]
        console.print(Text(f"{mark(v)} ", look) + Text(f"{v.claim}: {v.evidence}"))
        for c in v.cautions:
            console.print(Text(f"  ! {c}", "yellow"))
    for w in report.warnings + without(report):
        console.print(Text(f"! {w}", "yellow"))
    console.print(
        Text(f"\nReport: {where}/report.html (report.md, report.json and every answer in examples.jsonl beside it)")
    )
    console.print(Text("Next:\n" + "\n".join(f"  {c}" for c in report.next)))
