"""The process that holds models for lib/generation/pool.py: a Ray actor, or the process that asks."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext

from lib.generation.model_spec import Spec
from lib.run import Run
from lib.runtime import logs


class Process:
    """A Worker in a process of its own, with one CPU core and, if gpu, one GPU. waiting: entered until Ray has started it; the other
    arguments are the Worker's."""

    def __init__(self, *of, gpu: bool, waiting: AbstractContextManager):
        import ray

        from lib.config.job import Scale
        from lib.runtime.hardware import worker_env

        options = {
            "num_cpus": 1,
            "num_gpus": 1 if gpu else 0,
            "max_restarts": 1,  # if the memory monitor kills the process or its node is preempted
            "max_task_retries": 1,
            "runtime_env": {"env_vars": worker_env(Scale(), gpu)},
        }
        self.actor = ray.remote(**options)(Worker).remote(*of)
        with waiting:
            ray.get(self.actor.__ray_ready__.remote())

    def run(self, name: str, method: str, args: tuple) -> tuple[list, float, float]:
        import ray

        return ray.get(self.actor.run.remote(name, method, args))

    def end(self) -> None:
        import ray

        ray.kill(self.actor)


class Worker:
    """Heavy modules are imported only once the environment of its process is set.

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

    def end(self) -> None:
        """Frees the models."""
        self.models = {}

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

        from lib.generation.classifier import Classifier
        from lib.generation.denoiser import Denoiser
        from lib.generation.embedder import Embedder
        from lib.generation.reward_model import RewardModel
        from lib.generation.transformers_generator import TransformersGenerator
        from lib.generation.vllm_generator import VllmGenerator
        from lib.models import locate
        from lib.runtime import hardware
        from lib.runtime.device import of_worker

        disable_progress_bar()
        torch.set_num_threads(self.threads)
        device = of_worker()
        if spec.makes in ("encoder", "classifier"):
            kind = Embedder if spec.makes == "encoder" else Classifier
            return kind(locate.path(spec.base), getattr(torch, hardware.dtype(spec.dtype, device)), device)
        if spec.makes not in ("causal_lm", "reward"):
            return Denoiser(locate.path(spec.base), spec.makes, hardware.dtype(spec.dtype, device), device)
        answers = RewardModel if spec.reward else VllmGenerator if spec.vllm else TransformersGenerator
        return answers(locate.path(spec.base), hardware.dtype(spec.dtype, device), device, spec.trained_template)
