"""How long a job's rows are in tokens: memory follows the longest, time the mean."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.anatomy import described
from lib import data, models
from lib.config import Job
from lib.data.marks import learnt

SAMPLE = 512
"""Rows that are turned into tokens."""


@dataclass(frozen=True)
class Lengths:
    """Of one sequence; a preference pair has two."""

    longest: int
    mean: float
    labelled: int
    """Most places in one sequence at which a loss is taken."""
    labelled_mean: float
    per_row: float
    """Sequences that a row gives."""
    read: int
    """Rows that were turned into tokens; 0: none could be, and all are taken to be as long as they may."""


def measure(job: Job, kinds: tuple[str, ...], max_length: int) -> Lengths:
    """Of the job's training rows. kinds: as the stage takes them. Raises ValueError as lib.data.check does."""
    rows: list[tuple[str, dict]] = []

    def keep(kind: str, side: str, row: dict) -> None:
        if side == "train" and len(rows) < SAMPLE:
            rows.append((kind, row))

    data.check(job.data, kinds, keep=keep)
    if not rows:
        return Lengths(
            max_length, max_length, max_length, max_length, 2.0 if {"preference", "comparison"} & {*kinds} else 1.0, 0
        )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(described(job.model.base, job.model.revision))
    if text := models.template_text(job.model):
        tokenizer.chat_template = text
    texts = [pair for kind, row in rows for pair in _sequences(tokenizer, kind, row)]
    whole, prompt = (
        [len(ids) for ids in tokenizer(list(side), add_special_tokens=False)["input_ids"]]
        for side in zip(*texts, strict=True)
    )
    pairs = [(min(n, max_length), min(n - min(n, p), max_length)) for n, p in zip(whole, prompt, strict=True)]
    return Lengths(
        longest=max(n for n, _ in pairs),
        mean=sum(n for n, _ in pairs) / len(pairs),
        labelled=max(answer for _, answer in pairs),
        labelled_mean=sum(answer for _, answer in pairs) / len(pairs),
        per_row=len(pairs) / len(rows),
        read=len(rows),
    )


def _sequences(tokenizer, kind: str, row: dict) -> list[tuple[str, str]]:
    """(text, the prompt in it) of each sequence that the trainers make of a row: lib.data.per_answer, and TRL's pairs."""
    if kind == "text":
        return [(row["text"] + tokenizer.eos_token, "")]
    if kind == "preference":
        parts = [(row["prompt"], row[side]) for side in ("chosen", "rejected")]
    else:
        parts = [(row["messages"][:i], [row["messages"][i]]) for i in learnt(row)]

    def text(messages: list[dict], more: bool) -> str:
        tools = row.get("tools") or None
        return (
            tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=more, tokenize=False)
            if messages
            else ""
        )

    return [(text(prompt + answer, False), text(prompt, True)) for prompt, answer in parts]
