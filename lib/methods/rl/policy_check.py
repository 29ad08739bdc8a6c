"""Settings that conflict in any stage whose model answers while it trains, found before anything starts."""

from __future__ import annotations

import os
from typing import Any

from lib.config.job import Job
from lib.methods.rl import rewards
from lib.models.adapter_limits import KEPT
from lib.runtime import hardware

ADAPTERS = ("lora", "rslora", "dora", "pissa", "ia3", "ln_tuning", "loha", "lokr", "miss", "oft", "vera")
"""Adapters with which a model can answer while it trains, and whose base is the reference. AdaLoRA's schedule isn't tried."""


def check(job: Job, args: Any) -> None:
    """Raises ValueError, naming the key, if settings conflict. args: with the fields of StepGRPOConfig or PPOConfig."""
    rewards.check(job, args)
    scale = job.scale
    if scale.strategy in ("fsdp", "zero3"):
        raise ValueError(
            f"scale.strategy: {scale.strategy} shards the weights, so the model can't answer. Use ddp or zero2."
        )
    if job.model.adapter not in ("none", *ADAPTERS):
        raise ValueError(f"model.adapter: {job.model.adapter} isn't supported here. Use none or {', '.join(ADAPTERS)}.")
    if job.rollouts and job.rollouts.workers:
        _rollouts(job)
    if args.num_iterations > 1 and args.save_steps % args.num_iterations:
        raise ValueError(
            f"train.save_steps: {args.save_steps:g} is no multiple of train.num_iterations ({args.num_iterations}), and a run can't be resumed "
            "between two passes over the same answers."
        )
    if args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
        raise ValueError(
            f"train.lr_scheduler_type: {args.lr_scheduler_type} goes by the held-out loss, which isn't measured here."
        )
    if args.kl_limit is not None and args.kl_limit <= 0:
        raise ValueError(f"train.kl_limit: must be above 0, is {args.kl_limit}.")
    if args.temperature <= 0:
        raise ValueError(f"train.temperature: answers are sampled: must be above 0, is {args.temperature}.")


def _rollouts(job: Job) -> None:
    scale, asked = job.scale, job.rollouts.workers  # type: ignore[union-attr]  # the caller looked at it
    if job.model.adapter == "pissa" or job.model.peft.get("init_lora_weights", True) not in KEPT:
        raise ValueError(
            "rollouts.workers: rollout workers are sent the weights of the adapter, and this one's start changes the base's too. "
            "Use model.adapter: lora, or rollouts.workers: 0."
        )
    if os.environ.get("RAY_ADDRESS"):  # nodes may come
        return
    gpus = 0 if scale.device == "cpu" else hardware.local_gpus()
    have, each, what = (gpus, 1, "GPUs") if gpus else (hardware.local_cpus(), scale.cpus_per_worker, "CPU cores")
    if (scale.workers + asked) * each > have:
        raise ValueError(
            f"rollouts.workers: {asked} beside scale.workers: {scale.workers} need {(scale.workers + asked) * each} {what}, and this "
            f"machine has {have}. Use fewer of either, or submit to a cluster."
        )
