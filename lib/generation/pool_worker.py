"""The process that holds models for lib/generation/pool.py, as a Ray actor."""

from __future__ import annotations

import time
from contextlib import nullcontext

from lib.generation.model_spec import Spec
from lib.run import Run
from lib.runtime import logs


class Worker:
    """The actor. Heavy modules are imported only once its environment is set.

    run, number: its output goes to logs/eval-<number>.log of this run; if run is None, it isn't stored.
    """

    def __init__(self, specs: dict[str, Spec], threads: int, run: str | None, number: int):
        self.specs, self.threads, self.models = specs, threads, {}
        self.logged = Run(run) if run else None
        self.number = number

    def run(self, name: str, method: str, args: tuple) -> tuple[list, float, float]:
        """Computes one shard. Returns (results, seconds of work, seconds of loading)."""
        with logs.kept(self.logged, f"eval-{self.number}") if self.logged else nullcontext():
            return self._run(name, method, args)

    def _run(self, name: str, method: str, args: tuple) -> tuple[list, float, float]:
        began = time.time()
        other = getattr(args[-1], "other", None)
        needed = [name] + ([other] if other else [])
        self.models = {
            k: m for k, m in self.models.items() if k in needed
        }  # frees models that are no longer needed before new ones are loaded
        for k in needed:
            self.models[k] = self.models.get(k) or self._load(self.specs[k])
        loaded = time.time()
        more = {"other": self.models[other]} if other else {}
        return getattr(self.models[name], method)(*args, **more), time.time() - loaded, loaded - began

    def _load(self, spec: Spec):
        import torch
        from transformers.utils.logging import disable_progress_bar

        from lib.generation.reward_model import RewardModel
        from lib.generation.transformers_generator import TransformersGenerator
        from lib.generation.vllm_generator import VllmGenerator
        from lib.models import locate
        from lib.runtime import hardware
        from lib.runtime.device import of_worker

        disable_progress_bar()
        torch.set_num_threads(self.threads)
        device = of_worker()
        kind = RewardModel if spec.reward else VllmGenerator if spec.vllm else TransformersGenerator
        return kind(locate.path(spec.base), hardware.dtype(spec.dtype, device), device, spec.trained_template)
