"""Compares two runs: settings that differ, scores on the same examples, and the examples that changed most."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lib.evals.report import summary
from lib.evals.report.schema import Comparison, Report, flatten
from lib.evals.task import Scores
from lib.run import Run

SHOWN = ("stage", "parent", "parent_sha256", "model_sha256", "template_sha256", "steps", "tokens", "precision", "workers", "git")  # fmt: skip
"""Keys of provenance.json that are compared, besides data and packages."""


@dataclass
class Change:
    """One example on which the two runs' scores differ."""

    task: str
    decoding: str
    id: str
    question: str
    answers: tuple[str, str]
    scores: tuple[dict, dict]
    by: float
    """Difference of the headline score, b − a."""


def settings(a: Run, b: Run) -> list[tuple[str, str, str]]:
    """Returns (key, value in a, value in b) for every setting that differs; "—" if a run lacks the key."""
    both = [_settings(run) for run in (a, b)]
    keys = sorted(set(both[0]) | set(both[1]))
    return [(k, *(str(side.get(k, "—")) for side in both)) for k in keys if both[0].get(k) != both[1].get(k)]


def _settings(run: Run) -> dict:
    if not run.is_run():
        return {"model": run.path}
    provenance = run.provenance()
    job = {k: v for k, v in run.job().items() if k not in ("run", "eval", "stage")}
    job["train"] = provenance.get("train") or job.get("train") or {}
    for key in ("output_dir", "logging_dir", "run_name"):  # a run's location is not a difference
        job["train"].pop(key, None)
    shown = {k: provenance[k] for k in SHOWN if k in provenance}
    return flatten(job | {"data read": provenance.get("data", {}), "packages": provenance.get("packages", {}), **shown})


def find_report(a: str, b: str) -> tuple[Run, Report]:
    """Returns the newest report in either run's parent folder that measured both runs. Raises ValueError if there is none."""
    folders = {str(Path(x).parent) for x in (a, b) if "://" not in x}
    found = [p for folder in folders for p in Path(folder).glob("*/reports/report.json")]
    for path in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True):
        report = Report.from_json(path.read_text(encoding="utf-8"))
        if {a, b} <= {r.path for r in report.runs}:
            return Run(str(path.parent.parent)), report
    raise ValueError(
        f"no report in {' or '.join(sorted(folders))} has measured both. Measure them: python jobs/eval.py "
        f"--runs.a {a} --runs.b {b} --tasks demo --run runs/eval-diff; or name a report's run with --report."
    )


def compare(where: Run, report: Report, a: str, b: str) -> tuple[list[Comparison], list[Change]]:
    """Returns paired comparisons of every metric recorded per example, and the changed examples, largest change first.

    a, b: the runs' names in the report.
    """
    rows = [json.loads(line) for line in where.read_text("reports/examples.jsonl").split("\n") if line]
    sides: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        if row["run"] in (a, b) and row["scores"]:
            sides.setdefault((row["task"], row["decoding"], row["id"]), {})[row["run"]] = row
    both = {k: v for k, v in sides.items() if len(v) == 2}
    described = {(m.task, m.metric): m for m in report.metrics}
    first = {m.task: m.metric for m in reversed(report.metrics) if m.headline and not m.versus}
    values: dict[tuple, Scores] = {}
    changes = []
    for (task, decoding, name), pair in both.items():
        for run in (a, b):
            for metric, value in pair[run]["scores"].items():
                m, pairs = described[task, metric], isinstance(value, list)
                of = {"kind": m.kind, "better": m.better, "decoding": decoding, "groups": []}
                new = Scores(task, metric, run, [], [], [] if pairs else None, **of)
                s = values.setdefault((task, decoding, metric, run), new)
                s.ids.append(name)
                s.tops.append(value[0] if pairs else float(value))
                if pairs:
                    s.bottoms.append(value[1])
                s.groups.append(pair[run].get("group", ""))
        scores = pair[a]["scores"], pair[b]["scores"]
        head = first.get(task)
        if head in scores[0] and scores[0] != scores[1]:
            question = pair[a]["prompt"][-1]["content"]
            answers = pair[a]["answer"], pair[b]["answer"]
            changes.append(Change(task, decoding, name, question, answers, scores, scores[1][head] - scores[0][head]))
    for s in values.values():
        s.groups = s.groups if any(s.groups) and len(set(s.groups)) < len(s.groups) else None
    return summary.comparisons(list(values.values()), report.seed), sorted(changes, key=lambda c: (-abs(c.by), c.id))


def name_of(run: str, report: Report) -> str:
    """Returns the run's name in the report. Raises ValueError that lists the report's runs."""
    for r in report.runs:
        if run in (r.name, r.path) or Run(run).path == r.path:
            return r.name
    there = ", ".join(f"{r.name} ({r.path})" for r in report.runs)
    raise ValueError(f"{run} is not in the report; it has {there}.")
