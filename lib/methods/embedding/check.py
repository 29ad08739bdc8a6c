"""Settings and rows of contrastive training that conflict. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Any

from lib.config.job import Job
from lib.data import Check


def check(job: Job, args: Any) -> None:
    """Raises ValueError, naming the key. args: an object with the fields of EmbedConfig."""
    if job.model.adapter != "none":
        raise ValueError(
            f"model.adapter: jobs/embed.py trains all weights, not {job.model.adapter}. Set adapter: none."
        )
    if job.model.qat != "none":
        raise ValueError("model.qat: jobs/embed.py doesn't round weights while they train. Leave it out.")
    if job.model.chat_template:
        raise ValueError("model.chat_template: texts are embedded as they are, without a template. Leave it out.")
    if job.scale.strategy != "ddp":
        raise ValueError(
            f"scale.strategy: {job.scale.strategy} can't repeat the passes over a step's micro-batches. Use ddp."
        )
    if args.gradient_checkpointing:
        raise ValueError(
            "train.gradient_checkpointing: one micro-batch at a time is in memory already. Lower scale.micro_batch instead."
        )
    if job.scale.global_batch < 2 and args.loss != "triplet":
        raise ValueError(
            f"scale.global_batch: the negatives of {args.loss} are the other rows of a step, and there are none. Raise it."
        )
    if args.loss == "simcse" and args.dropout == 0:
        raise ValueError(
            "train.dropout: simcse compares a text with itself under two dropouts. Use one above 0, such as 0.1."
        )
    if args.matryoshka_dims is not None and len(set(args.matryoshka_dims)) < max(1, len(args.matryoshka_dims)):
        raise ValueError(f"train.matryoshka_dims: must be different numbers, is {args.matryoshka_dims}.")
    if args.loss == "simcse" and args.hard_negatives is not None:
        raise ValueError(
            "train.hard_negatives: simcse's rows are plain texts, which have no passages to choose from. Leave it out."
        )


def fits(args: Any, checked: Check) -> None:
    """Raises ValueError if the rows aren't what train.loss compares."""
    if checked.kind is None:  # a hub's data set, which the workers check
        return
    if args.loss == "simcse" and checked.kind != "text":
        raise ValueError(
            f"train.loss: simcse learns from plain texts, and data.source has {checked.kind} rows. Set data.format: text, or loss: mnrl."
        )
    if args.loss != "simcse" and checked.kind == "text":
        raise ValueError(
            f"train.loss: {args.loss} needs pairs of texts, and data.source has plain texts. Set loss: simcse."
        )
    if args.hard_negatives is not None:
        if checked.complete and checked.negatives and checked.negatives[1]:
            raise ValueError(
                "train.hard_negatives: rows of data.source have negatives already. Leave it out, or take their columns away."
            )
    elif args.loss == "triplet" and checked.complete and checked.negatives and not checked.negatives[0]:
        raise ValueError(
            "train.loss: triplet needs a negative in each row, and some have none. Add them, name an embedding model in "
            "train.hard_negatives, or set loss: mnrl."
        )
