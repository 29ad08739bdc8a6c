"""The report of a compression: size, memory, speed and scores (lib/evals) before and after."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from lib.evals.report.formatting import show as shown
from lib.evals.report.render import comparison_lines, table
from lib.evals.report.schema import Report
from lib.methods.compression.measure import Needs, Rate
from lib.run import Run

MIB = 1 << 20


@dataclass
class Compressed:
    """A model before and after compression."""

    run: str
    stage: str
    """The report is reports/<stage>.md and .json of the run."""
    base: str
    names: tuple[str, str]
    """Names of the model before and after; the keys of `bytes` and `needs`, and the names in `scores`."""
    how: str
    """A sentence that describes the method."""
    engine: str
    """vllm or transformers"""
    provenance: dict
    bytes: dict[str, int]
    """{name: size of the weight files in bytes}"""
    needs: dict[str, Needs]
    scores: Report | None
    command: str
    more: tuple[tuple[str, str, str, str], ...] = ()
    """Additional rows from the stage: (label, before, after, change)."""


def write(c: Compressed) -> None:
    """Writes reports/<stage>.md and then reports/<stage>.json into the run."""
    run, p = Run(c.run), c.provenance
    run.write_text(f"reports/{c.stage}.md", markdown(c))
    found = {
        "schema": 1,
        "method": c.names[1],
        "base": c.base,
        "engine": c.engine,
        "command": c.command,
        "bytes": c.bytes,
        **{key: p[key] for key in ("seconds", "packages", "hardware", "git")},
        "needs": {name: asdict(n) for name, n in c.needs.items()},
        "metrics": [asdict(m) for m in c.scores.metrics] if c.scores else [],
        "comparisons": [asdict(x) for x in c.scores.comparisons] if c.scores else [],
    }
    run.write_json(f"reports/{c.stage}.json", found)


def rows(c: Compressed) -> list[tuple[str, ...]]:
    """Returns the table's rows: (label, before, after, change)."""
    first, last = c.names
    a, b = c.needs[first], c.needs[last]
    old, new = c.bytes[first], c.bytes[last]
    out = [
        *c.more,
        ("weights on disk", f"{old / 1e6:.0f} MB", f"{new / 1e6:.0f} MB", f"{new / old:.2f}×"),
        _memory("memory, peak while answering", a.answering_bytes, b.answering_bytes),
        _memory("  of that beyond the empty process", a.answering_bytes - a.empty_bytes, b.answering_bytes - b.empty_bytes),
        _memory("memory, peak while loading", a.loading_bytes, b.loading_bytes),
        _speed("tokens/s, 1 prompt at a time", a.alone, b.alone),
        _speed("tokens/s, 16 prompts at a time", a.together, b.together),
    ]  # fmt: skip
    changes = {(x.task, x.metric, x.decoding): x for x in c.scores.comparisons} if c.scores else {}
    for row in table(c.scores) if c.scores else []:
        m = row["metrics"]
        if first in m and last in m and row["main"]:
            found = changes.get((m[first].task, m[first].metric, m[first].decoding))
            change = comparison_lines([found])[0][1] if found else ""
            out.append((row["label"], shown(m[first]), shown(m[last]), change))
    return out


def _memory(label: str, a: int, b: int) -> tuple[str, ...]:
    return label, f"{a / MIB:,.0f} MiB", f"{b / MIB:,.0f} MiB", f"{(b - a) / MIB:+,.0f} MiB"


def _speed(label: str, a: Rate, b: Rate) -> tuple[str, ...]:
    text = lambda r: f"{r.median:,.0f} [{r.low:,.0f}–{r.high:,.0f}]"  # noqa: E731
    return label, text(a), text(b), f"{b.median / a.median:.2f}×"


def markdown(c: Compressed) -> str:
    """Renders the report."""
    engine = "vLLM" if c.engine == "vllm" else "transformers"
    out = [
        f"# {c.base} → {c.names[1]}",
        "",
        f"{engine}, one process and one core (or GPU) per model, {c.provenance['hardware']}. {c.how} Scores have 95% intervals, and "
        "changes are paired on the same examples; speeds are the median and range of the repetitions.",
        "",
        f"| | {c.names[0]} | {c.names[1]} | change |",
        "|---|---:|---:|---|",
        *(f"| {' | '.join(row)} |" for row in rows(c)),
        "",
    ]
    if c.scores:
        out += ["All scores, and answers side by side: [report.md](report.md), [report.html](report.html).", ""]
    return "\n".join([*out, "```", c.command, "```", ""])


def terminal(c: Compressed) -> None:
    """Prints the table and the next commands."""
    import sys

    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
    grid = Table(title="before and after, scores with 95% intervals", title_justify="left", box=None, pad_edge=False)
    grid.add_column("")
    for name in c.names:
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("change")
    for row in rows(c):
        grid.add_row(*row)
    console.print(grid)
    where = Run(c.run)
    console.print(
        f"\nReport: {where.at('reports')}/{c.stage}.md (also {c.stage}.json, and report.html with the scores)\nNext:"
    )
    console.print(f"  serve run serve.app:app run={where.path}")
    if c.scores:
        console.print(f"  python jobs/diff.py {c.names[0]} {c.names[1]} --report {where.path}")
