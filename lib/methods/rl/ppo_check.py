"""Settings of jobs/ppo.py that conflict, found before anything starts."""

from __future__ import annotations

from typing import Any

from lib.config.job import Job
from lib.methods.rl import policy_check


def check(job: Job, args: Any) -> None:
    """Raises ValueError, naming the key, if settings conflict. args: with PPOConfig's fields."""
    policy_check.check(job, args)
    if args.num_iterations < 1:
        raise ValueError(f"train.num_iterations: must be at least 1, is {args.num_iterations}.")
    for key in ("gamma", "lam"):
        if not 0 <= getattr(args, key) <= 1:
            raise ValueError(f"train.{key}: must be from 0 to 1, is {getattr(args, key)}.")
    for key in ("cliprange", "cliprange_value", "kl_horizon", "kl_target"):
        if (given := getattr(args, key)) is not None and given <= 0:
            raise ValueError(f"train.{key}: must be above 0, is {given}.")
    if args.kl_target is not None and not args.kl_coef:
        raise ValueError("train.kl_target: adapts train.kl_coef by a factor, so it can't start at 0. Set it above 0.")
