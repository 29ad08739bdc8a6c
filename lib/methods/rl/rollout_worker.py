"""The process that draws answers for lib/methods/rl/rollout_pool.py: a Ray actor with a copy of the policy."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from lib.config.job import Job
from lib.generation.sampling import Sampling


@dataclass(frozen=True)
class Recipe:
    """How to make a copy of the policy and draw from it as the training worker does. init: train.model_init_kwargs, completed."""

    job: Job
    init: dict
    bf16: bool
    fp16: bool
    sampling: Sampling


class RolloutWorker:
    """Heavy modules are imported only once the environment of its process is set."""

    def __init__(self, recipe: Recipe):
        import torch
        from transformers.utils.logging import disable_progress_bar
        from trl.trainer.utils import disable_dropout_in_model

        from lib.methods.rl.policy import policy
        from lib.methods.rl.rollouts import Rollouts
        from lib.models import cpu_lora, load, locate, prefixes
        from lib.runtime.device import of_worker

        disable_progress_bar()
        job = recipe.job
        torch.set_num_threads(job.scale.cpus_per_worker)
        args = SimpleNamespace(
            model_init_kwargs=recipe.init, bf16=recipe.bf16, fp16=recipe.fp16, seed=recipe.sampling.seed, max_length=None, process_index=0,
            gradient_checkpointing=False, device=torch.device(of_worker()),
        )  # fmt: skip
        self.model, tokenizer = policy(job.model, args)
        self.model.to(args.device)
        if job.model.adapter != "none":
            load.train_in_fp32(self.model)
        disable_dropout_in_model(self.model)
        prefixes.install(self.model)
        if job.scale.strategy == "ddp":
            cpu_lora.install(self.model)
        self.version = -1
        self.rollouts = Rollouts(self.model, tokenizer, locate.path(job.model.base), recipe.sampling, args)

    def draw(self, version: int, weights: list[Any], prompts: list[list[dict]], numbers: list[int], step: int) -> list:
        """Returns the answers, as Rollouts.answers. weights: [an object reference of {name: weight that trains}], which is read if the
        version is another than that of the last call."""
        import ray
        import torch

        if version != self.version:
            own = dict(self.model.named_parameters())
            with torch.no_grad():
                for name, weight in ray.get(weights[0]).items():
                    own[name].copy_(weight)
            self.version = version
        return self.rollouts.answers(prompts, numbers, step)
