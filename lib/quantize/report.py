"""The report of a quantisation: size, memory and speed before and after, beside the scores that lib/evals measured."""

from __future__ import annotations

from dataclasses import asdict

from lib.evals.render import comparison_lines, table
from lib.evals.report import Report
from lib.evals.summary import show as shown
from lib.quantize.job import QuantizeJob
from lib.quantize.measure import Needs, Rate
from lib.run import Run

MIB = 1 << 20


def write(job: QuantizeJob, provenance: dict, needs: dict[str, Needs], scores: Report | None, command: str) -> None:
    """Puts reports/quantize.md and then reports/quantize.json into the run. needs: {"before": …, method: …}."""
    run = Run(job.run)
    run.write_text("reports/quantize.md", markdown(job, provenance, needs, scores, command))
    found = {
        "schema": 1,
        "method": job.method,
        "base": job.model.base,
        "engine": job.chosen(),
        "command": command,
        "bytes": provenance["bytes"],
        "seconds": provenance["seconds"],
        "packages": provenance["packages"],
        "hardware": provenance["hardware"],
        "git": provenance["git"],
        "needs": {name: asdict(n) for name, n in needs.items()},
        "metrics": [asdict(m) for m in scores.metrics] if scores else [],
        "comparisons": [asdict(c) for c in scores.comparisons] if scores else [],
    }
    run.write_json("reports/quantize.json", found)


def rows(job: QuantizeJob, provenance: dict, needs: dict[str, Needs], scores: Report | None) -> list[tuple[str, ...]]:
    """(what, before, after, change) of everything measured."""
    a, b = (needs[name] for name in ("before", job.method))
    old, new = (provenance["bytes"][name] for name in ("before", job.method))
    out = [
        ("weights on disk", f"{old / 1e6:.0f} MB", f"{new / 1e6:.0f} MB", f"{new / old:.2f}×"),
        _memory("memory, peak while answering", a.answering_bytes, b.answering_bytes),
        _memory("  of that beyond the empty process", a.answering_bytes - a.empty_bytes, b.answering_bytes - b.empty_bytes),
        _memory("memory, peak while loading", a.loading_bytes, b.loading_bytes),
        _speed("tokens/s, 1 prompt at a time", a.alone, b.alone),
        _speed("tokens/s, 16 prompts at a time", a.together, b.together),
    ]  # fmt: skip
    changes = {(c.task, c.metric, c.decoding): c for c in scores.comparisons} if scores else {}
    for row in table(scores) if scores else []:
        m = row["metrics"]
        if "before" in m and job.method in m and row["main"]:
            key = m["before"].task, m["before"].metric, m["before"].decoding
            c = changes.get(key)
            change = comparison_lines([c])[0][1] if c else ""
            out.append((row["label"], shown(m["before"]), shown(m[job.method]), change))
    return out


def _memory(what: str, a: int, b: int) -> tuple[str, ...]:
    return what, f"{a / MIB:,.0f} MiB", f"{b / MIB:,.0f} MiB", f"{(b - a) / MIB:+,.0f} MiB"


def _speed(what: str, a: Rate, b: Rate) -> tuple[str, ...]:
    text = lambda r: f"{r.median:,.0f} [{r.low:,.0f}–{r.high:,.0f}]"  # noqa: E731
    return what, text(a), text(b), f"{b.median / a.median:.2f}×"


def markdown(job: QuantizeJob, provenance: dict, needs: dict[str, Needs], scores: Report | None, command: str) -> str:
    """The report as text."""
    engine = "vLLM" if job.chosen() == "vllm" else "transformers"
    out = [
        f"# {job.model.base} → {job.method}",
        "",
        f"{engine}, one process and one core (or GPU) a model, {provenance['hardware']}. Quantised in "
        f"{provenance['seconds']['quantize']:.0f} s. Scores with 95% intervals, changes paired on the same examples; "
        "speeds are the median of the repetitions and their range.",
        "",
        f"| | before | {job.method} | change |",
        "|---|---:|---:|---|",
        *(f"| {' | '.join(row)} |" for row in rows(job, provenance, needs, scores)),
        "",
    ]
    if scores:
        out += ["Every score, and answers side by side: [report.md](report.md), [report.html](report.html).", ""]
    return "\n".join([*out, "```", command, "```", ""])


def terminal(job: QuantizeJob, provenance: dict, needs: dict[str, Needs], scores: Report | None) -> None:
    """Prints the table and what to type next."""
    import sys

    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
    grid = Table(title="before and after, scores with 95% intervals", title_justify="left", box=None, pad_edge=False)
    grid.add_column("")
    for name in ("before", job.method):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("change")
    for row in rows(job, provenance, needs, scores):
        grid.add_row(*row)
    console.print(grid)
    where = Run(job.run)
    console.print(
        f"\nReport: {where.at('reports')}/quantize.md (and quantize.json, and of the scores report.html)\nNext:"
    )
    console.print(f"  serve run serve.app:app run={where.path}")
    if scores:
        console.print(f"  python jobs/diff.py before {job.method} --report {where.path}")
