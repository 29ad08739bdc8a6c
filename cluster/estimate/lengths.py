"""Lengths of a job's rows in tokens. Memory depends on the longest, time on the mean."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.estimate.anatomy import described
from lib import data
from lib.config.job import Job
from lib.models import load
from lib.rendering.sequences import Sequence, Settings, sequences

SAMPLE = 512
"""Maximum rows that are tokenised."""


@dataclass(frozen=True)
class Lengths:
    """Tokens per sequence; a preference pair has two sequences."""

    longest: int
    mean: float
    labelled: int
    """Maximum positions of one sequence at which a loss is computed."""
    labelled_mean: float
    per_row: float
    """Sequences per row."""
    read: int
    """Rows that were tokenised; 0: none could be read, and all are assumed to have the maximum length."""


def measure(
    job: Job,
    kinds: tuple[str, ...],
    max_length: int,
    objective: str | None = None,
    embeds: bool = False,
    classifies: bool = False,
) -> Lengths:
    """Measures the job's training rows. kinds: row kinds that the stage accepts; objective: of pre-training; embeds: each text of a row is
    a sequence; classifies: a row is a text or a pair of texts.

    Raises ValueError as lib.data.check does.
    """
    rows: list[tuple[str, dict]] = []

    def keep(kind: str, side: str, row: dict, place: str) -> None:
        if side == "train" and len(rows) < SAMPLE:
            rows.append((kind, row))

    data.check(job.data, kinds, keep=keep)
    if not rows:
        return Lengths(
            max_length, max_length, max_length, max_length, 2.0 if {"preference", "comparison"} & {*kinds} else 1.0, 0
        )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(described(job.model.base, job.model.revision))
    if text := load.template_text(job.model):
        tokenizer.chat_template = text
    settings = Settings(False, max_length, False, None, False, None, objective, embeds, classifies)
    found = [s for _, made in sequences(tokenizer, rows[0][0], [row for _, row in rows], settings) for s in _good(made)]
    pairs = [(min(len(s.ids), max_length), min(len(s.ids) - s.start, max_length)) for s in found]
    return Lengths(
        longest=max(n for n, _ in pairs),
        mean=sum(n for n, _ in pairs) / len(pairs),
        labelled=max(answer for _, answer in pairs),
        labelled_mean=sum(answer for _, answer in pairs) / len(pairs),
        per_row=len(pairs) / len(rows),
        read=len(rows),
    )


def _good(made: list[Sequence] | Exception) -> list[Sequence]:
    if isinstance(made, Exception):
        raise ValueError(f"model.chat_template: the chat template fails: {made}")
    return made
