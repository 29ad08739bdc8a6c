"""Settings of pre-training that conflict. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Any

from lib.config.job import Job

SHORTEST = 8
"""Tokens of the shortest block from which every objective has something to predict."""


def check(job: Job, args: Any) -> None:
    """Raises ValueError, naming the key. args: an object with the fields of PretrainConfig."""
    if args.max_length < SHORTEST:
        raise ValueError(f"train.max_length: must be at least {SHORTEST}, is {args.max_length}.")
    if job.model.adapter != "none" and job.makes != "causal_lm":
        raise ValueError(
            f"model.adapter: {job.model.adapter} trains with train.objective clm or prefix_lm, not {args.objective}. Set adapter: none."
        )
    if job.model.quantization != "none":
        raise ValueError(
            "model.quantization: jobs/pretrain.py doesn't quantise the base. Leave it out, or use jobs/sft.py."
        )
    if args.objective == "electra" and job.scale.strategy not in ("ddp", "zero1", "zero2"):
        raise ValueError(
            f"scale.strategy: train.objective electra saves a part of its model, which {job.scale.strategy} shards. Use zero2."
        )
    if job.scale.strategy == "fsdp" and args.objective in ("mlm", "nsp", "span_corruption"):
        # accelerate 1.15 makes a group of the input embeddings, which BERT's head and both halves of T5 share; torch 2.13 then raises.
        raise ValueError(
            f"scale.strategy: FSDP can't shard the shared embeddings of a model for train.objective {args.objective}. Use zero3."
        )
    if args.train_sampling_strategy not in (None, "random", "sequential"):
        raise ValueError("train.train_sampling_strategy: blocks all have the same length. Use random or sequential.")
