"""The report's answers: a sample shown side by side, the worst of each task, and all of them as JSONL."""

from __future__ import annotations

import json
import math

from lib.evals.context import Context, draw
from lib.evals.report.schema import Failures, Sample
from lib.evals.task import Scores


def samples(context: Context) -> tuple[str, list[Sample]]:
    """Returns (how the prompts were chosen, the prompts with every run's answer)."""
    job = context.job
    task = next((t for t in job.tasks if t in context.recorded), None)
    if not task or not job.samples:
        return "", []
    recorded = list(context.recorded[task].values())
    shown = recorded[0]["decoding"]
    rows = [r for r in recorded if r["decoding"] == shown]
    how_many = f"{min(job.samples, len(rows))} of {len(rows)} held-out prompts"
    note = f"{how_many}, drawn by seed {job.seed} and not picked; decoding: {shown}."
    chosen = [rows[i] for i in draw(len(rows), job.samples, job.seed)]
    return note, [_sample(r) for r in chosen]


SHOWN = 3
"""Number of failures shown per task."""


def failures(context: Context, scores: list[Scores]) -> list[Failures]:
    """Returns the last run's lowest-scoring answers to each task by its headline metric, those that another run got better first."""
    found, last = [], list(context.job.runs)[-1:]
    for s in scores:
        if not s.headline or [s.run] != last or s.task not in context.recorded or not s.tops or s.versus:
            continue
        rows = {i: r for (i, how), r in context.recorded[s.task].items() if how == s.decoding}
        sign = 1 if s.better == "higher" else -1
        worst = min(sign * t for t in s.tops)
        if worst == max(sign * t for t in s.tops) == max(sign, 0):
            continue  # every answer is right
        value = lambda r, run: sign * _number(r["scores"].get(run, {}).get(s.metric, -sign * math.inf))  # noqa: B023, E731
        low = [rows[i] for i, t in zip(s.ids, s.tops, strict=True) if sign * t == worst and i in rows]
        low.sort(key=lambda r: -max(value(r, run) for run in r["answers"]))
        shown = [_sample(r) for r in low[:SHOWN]]
        if shown and not any((f.task, f.metric) == (s.task, s.metric) for f in found):
            found.append(Failures(s.task, s.decoding, s.run, s.metric, len(low), shown))
    return found


def _sample(row: dict) -> Sample:
    e = row["example"]
    scores = {run: {k: _number(v) for k, v in found.items()} for run, found in row["scores"].items()}
    return Sample(e.id, e.prompt, row["answers"], scores, _text(e.reference))


def _number(score: float | tuple[float, float]) -> float:
    """Returns a (top, bottom) score as its ratio."""
    return score[0] / score[1] if isinstance(score, tuple) else score


def _text(reference) -> str | None:
    return reference if reference is None or isinstance(reference, str) else json.dumps(reference, ensure_ascii=False)


def lines(context: Context) -> str:
    """Returns the content of examples.jsonl: every answer with its scores."""
    rows = []
    for task, kept in context.recorded.items():
        for r in kept.values():
            example = {
                "task": task,
                "decoding": r["decoding"],
                "id": r["example"].id,
                "group": r["example"].group,
                "prompt": r["example"].prompt,
                "reference": r["example"].reference,
            }
            for run, answer in r["answers"].items():
                rows.append(example | {"run": run, "answer": answer, "scores": r["scores"][run]} | r["details"][run])
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
