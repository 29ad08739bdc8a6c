"""Settings of jobs/grpo.py that conflict, found before anything starts."""

from __future__ import annotations

from typing import Any

from lib.config.job import Job
from lib.methods.rl import rewards

ADAPTERS = ("lora", "rslora", "dora", "ia3", "ln_tuning", "loha", "lokr", "miss", "oft", "vera")
"""Adapters with which a model can answer while it trains, and whose base is the reference. Without PiSSA's, the base
isn't model.base; AdaLoRA's schedule isn't tried."""


def check(job: Job, args: Any) -> None:
    """Raises ValueError, naming the key, if settings conflict. args: with StepGRPOConfig's fields."""
    rewards.check(job, args)
    scale = job.scale
    if scale.strategy in ("fsdp", "zero3"):
        raise ValueError(
            f"scale.strategy: {scale.strategy} shards the weights, so the model can't answer. Use ddp or zero2."
        )
    if job.model.adapter not in ("none", *ADAPTERS):
        raise ValueError(f"model.adapter: {job.model.adapter} isn't supported here. Use none or {', '.join(ADAPTERS)}.")
    start = job.model.peft.get("init_lora_weights", True)
    if args.beta and start not in (True, False, "gaussian", "orthogonal"):
        raise ValueError(
            f"model.peft.init_lora_weights: {start} changes the base's weights, and with train.beta the base is the reference model. "
            "Leave one of them out."
        )
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
    if args.sync_ref_model:
        raise ValueError(
            "train.sync_ref_model: the changed reference isn't in checkpoints, so no run could be resumed. Leave it out."
        )
    if args.num_iterations > 1 and args.save_steps % args.num_iterations:
        raise ValueError(
            f"train.save_steps: {args.save_steps:g} is no multiple of train.num_iterations ({args.num_iterations}), and a run can't be resumed "
            "between two passes over the same answers."
        )
    if args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
        raise ValueError(
            f"train.lr_scheduler_type: {args.lr_scheduler_type} goes by the held-out loss, which isn't measured here."
        )
    if args.temperature <= 0:
        raise ValueError(f"train.temperature: answers are sampled: must be above 0, is {args.temperature}.")
