"""Settings and rows of classification that conflict. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Any

from lib.config.job import Job
from lib.data import Check

MOST = 1000
"""Most classes. More are likely not classes, such as numbers of rows or free texts."""


def check(job: Job, args: Any) -> None:
    """Raises ValueError, naming the key. args: an object with the fields of ClassifyConfig."""
    if job.model.qat != "none":
        raise ValueError("model.qat: jobs/classify.py doesn't round weights while they train. Leave it out.")
    if job.model.quantization != "none":
        raise ValueError("model.quantization: jobs/classify.py trains unquantised bases only. Leave it out.")
    if job.model.chat_template:
        raise ValueError("model.chat_template: texts are read as they are, without a template. Leave it out.")
    if job.scale.strategy != "ddp":
        raise ValueError(f"scale.strategy: {job.scale.strategy} hasn't been tried with jobs/classify.py. Use ddp.")
    if args.gradient_checkpointing and args.dropout:
        raise ValueError(
            "train.gradient_checkpointing: computes a layer twice, with another dropout each time. Set train.dropout: 0, or leave it out."
        )


def fits(checked: Check) -> None:
    """Raises ValueError if classifying the training rows, or rating them, can't be learnt or measured. Rows that weren't all read are
    checked by the workers."""
    if not checked.complete or checked.kind is None:
        return
    if checked.kind == "pair":
        if checked.scores and checked.scores[0] == checked.scores[1]:
            raise ValueError(f"data.source: all {checked.rows:,} training rows have the score {checked.scores[0]:g}.")
        return
    names = checked.class_names()
    if len(names) < 2:
        raise ValueError(
            f"data.source: all {checked.rows:,} training rows have the label {names[0]}. Add rows with other labels."
        )
    if len(names) > MOST:
        raise ValueError(
            f"data.source: the training rows have {len(names):,} different labels, such as {', '.join(names[:3])}; {MOST:,} at most are "
            "learnt. Name the column of the classes with data.columns: {theirs: label}."
        )
    if unknown := sorted(checked.heldout_classes.keys() - checked.classes.keys()):
        rows = sum(checked.heldout_classes[name] for name in unknown)
        raise ValueError(
            f"data.heldout: {rows:,} held-out rows have labels that no training row has: {', '.join(unknown[:5])}. Add training rows with "
            "these labels, leave the held-out ones out, or lower data.heldout_fraction."
        )
