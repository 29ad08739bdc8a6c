"""Contamination: how many of a task's examples appear in a run's training data, by shared word sequences.

An example counts as contaminated if 13 consecutive words of its question appear in a training row (Brown et al. 2020, appendix
C), or all its words if it has 8 to 12; case, spacing and punctuation are ignored. The training data of the run's ancestors
is searched too, as far as it can still be read. For example, AlpacaEval's prompts contain all of self-instruct's user tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lib.config.job import Data
from lib.data.sources import DEMOS
from lib.data.split import LEAK_WORDS, normalise
from lib.evals.report.schema import Overlap
from lib.evals.task import Example
from lib.run import Run

WORDS = 13


def shared(questions: list[str], training: Iterable[str]) -> list[bool]:
    """Returns for each question whether a training text contains it. The texts are streamed once and not kept in memory."""
    index: dict[tuple[str, ...], set[int]] = {}
    for i, question in enumerate(questions):
        words = normalise(question).split()
        size = min(WORDS, len(words))
        if size >= LEAK_WORDS:
            for at in range(len(words) - size + 1):
                index.setdefault(tuple(words[at : at + size]), set()).add(i)
    sizes = sorted({len(k) for k in index})
    found: set[int] = set()
    for text in training:
        words = normalise(text).split()
        for size in sizes:
            for at in range(len(words) - size + 1):
                found |= index.get(tuple(words[at : at + size]), set())
    return [i in found for i in range(len(questions))]


def overlaps(runs: dict[str, str], asked: dict[str, list[Example]]) -> list[Overlap]:
    """Returns the overlap of every run with every task. runs: {name: run directory, folder or hub name}; asked: {task: its
    examples}."""
    out = []
    for name, base in runs.items():
        before = list(_lineage(base))
        for task, examples in asked.items():
            if not before:
                continue
            # A demo's held-out messages can't appear in its training rows (lib/data/demo.py), but share sentences by design.
            generated = next((name for name in DEMOS if all(e.id.startswith(f"{name}-") for e in examples)), "")
            read = [run for run in before if run.job()["data"]["source"] != generated]
            if not read:
                note = f"held out when they are generated: no training row has their {DEMOS[generated].HELDOUT}"
                out.append(Overlap(task, name, 0, len(examples), note=note))
                continue
            questions = [str(e.prompt[-1]["content"]) for e in examples]
            try:
                hits = shared(questions, (text for run in read for text in _texts(run)))
            except (ValueError, OSError) as e:
                out.append(Overlap(task, name, None, len(examples), note=" ".join(str(e).split())[:200]))
                continue
            first = [e.id for e, hit in zip(examples, hits, strict=True) if hit][:10]
            out.append(Overlap(task, name, sum(hits), len(examples), first))
    return out


def _lineage(base: str) -> Iterator[Run]:
    """Yields the run and its ancestors that have data of their own, newest first, and those of all runs of a merge; nothing for a model
    that is not a run of this project."""
    while ("/" in base) and (run := Run(base)).is_run() and "model" in run.job():
        job = run.job()
        if "data" in job:
            yield run
        for merged in job.get("runs", {}).values():
            yield from _lineage(merged)
        base = job["model"]["base"]


def _texts(run: Run) -> Iterator[str]:
    """Yields every message and text of the rows that a run was trained on."""
    from lib.data import load

    kind = run.provenance().get("data", {}).get("kind")
    kinds = (kind,) if kind else ("chat", "text", "preference")
    kinds = tuple(
        "comparison" if k == "preference" else k for k in kinds
    )  # a reward run's pairs may diverge at any turn
    rows = load(Data(**run.job()["data"]), kinds).train
    for row in rows:
        for value in row.values():
            if isinstance(value, str):
                yield value
            elif isinstance(value, list):
                yield from (str(m["content"]) for m in value if isinstance(m, dict) and m.get("content"))
