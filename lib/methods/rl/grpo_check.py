"""Settings of jobs/grpo.py that conflict, found before anything starts."""

from __future__ import annotations

from typing import Any

from lib.config.job import Job
from lib.methods.rl import policy_check


def check(job: Job, args: Any) -> None:
    """Raises ValueError, naming the key, if settings conflict. args: with StepGRPOConfig's fields."""
    policy_check.check(job, args)
    scale = job.scale
    if args.num_generations < 2:
        raise ValueError("train.num_generations: an answer is compared with others to its prompt: must be 2 or more.")
    if scale.global_batch % args.num_generations:
        raise ValueError(
            f"scale.global_batch: {scale.global_batch} answers are no whole number of groups of {args.num_generations} "
            "(train.num_generations)."
        )
    whole = scale.workers == 1 and scale.micro_batch >= scale.global_batch
    if args.loss_type == "bnpo" and not whole:
        raise ValueError(
            "train.loss_type: bnpo divides by the tokens of a micro-batch, so that another scale.micro_batch would be another loss. "
            f"Use dapo, which divides by those of the step, or scale.workers: 1 and scale.micro_batch: {scale.global_batch}."
        )
    if args.top_entropy_quantile < 1 and not whole:
        raise ValueError(
            "train.top_entropy_quantile: ranks the tokens of a micro-batch, so that another scale.micro_batch would be another loss. "
            f"Leave it out, or set scale.workers: 1 and scale.micro_batch: {scale.global_batch}."
        )
    if args.kl_limit is not None and not args.beta:
        raise ValueError(
            "train.kl_limit: the KL is measured only if train.beta is above 0. Set it, or leave the limit out."
        )
    if args.sync_ref_model:
        raise ValueError(
            "train.sync_ref_model: the changed reference isn't in checkpoints, so no run could be resumed. Leave it out."
        )
