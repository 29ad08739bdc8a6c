"""Rollouts by other processes: Ray actors with copies of the policy, wherever the cluster has room for them.

The answers of a step are drawn in units of rollouts.batch answers, always the same ones together, by whichever process is free. So one
process draws the same bits as four, and a unit whose process is lost is drawn again by another, with the same bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lib.config.job import Job
from lib.distributed.collectives import from_rank_0, gathered, share
from lib.generation.sampling import Sampling
from lib.methods.rl import value_model
from lib.methods.rl.rollout_worker import Recipe, RolloutWorker
from lib.methods.rl.rollouts import Rollout, Rollouts
from lib.models import locate
from lib.runtime import hardware
from lib.runtime.logs import say

TOLD_S = 60.0
"""Seconds after which training workers that wait for answers hear that others are still being drawn: fewer than their timeout."""


def make(job: Job, args: Any, model: Any, tokenizer: Any, sampling: Sampling) -> Rollouts:
    """Returns what draws the answers of a job. model: under training, without DDP's wrapper; args: its TrainingArguments."""
    plain = Rollouts(model, tokenizer, locate.path(job.model.base), sampling, args)
    if not job.rollouts or not job.rollouts.workers:
        return plain
    return PooledRollouts(plain, model, job, args)


class PooledRollouts(Rollouts):
    """Draws by a pool, which rank 0 owns. Every rank has to call `answers`, with its own prompts. local: what draws in this process."""

    def __init__(self, local: Rollouts, model: Any, job: Job, args: Any):
        self.generator, self.sampling, self.local, self.model = local.generator, local.sampling, local, model
        group = getattr(args, "num_generations", 1)
        self.unit = -(-job.rollouts.batch // group) * group  # type: ignore[union-attr]  # `make` looked at it
        self.waits = job.rollouts.without == "wait"  # type: ignore[union-attr]
        init = {k: v for k, v in (args.model_init_kwargs or {}).items() if k != "device_map"}
        recipe = Recipe(replace(job, rewards=None), init, args.bf16, args.fp16, local.sampling)
        self.pool = Pool(recipe, job.rollouts.workers, args.device.type == "cuda") if share()[0] == 0 else None  # type: ignore[union-attr]

    def answers(self, prompts: list[list[dict]], numbers: list[int], step: int) -> list[Rollout]:
        rank, asked = share()[0], gathered(list(zip(prompts, numbers, strict=True)))
        flat = [each for some in asked for each in some]
        units = [flat[at : at + self.unit] for at in range(0, len(flat), self.unit)]
        drawing = self._drawn(units, step) if rank == 0 else None
        found = None
        while found is None:  # others would time out in a collective while rank 0 waits for a node
            found = from_rank_0(next(drawing) if drawing else None)
        first = sum(map(len, asked[:rank]))
        return found[first : first + len(prompts)]

    def _drawn(self, units: list, step: int) -> Iterator[list[Rollout] | None]:
        """Yields None after each unit, or TOLD_S seconds without one, then the answers to all units."""
        assert self.pool
        with self.pool.given(self.weights(), step) as ask:
            done: dict[int, list[Rollout]] = {}
            todo = deque(range(len(units)))
            while len(done) < len(units):
                ask(todo, units)
                if self.pool.busy or self.waits or not todo:
                    finished, lost = self.pool.finished(TOLD_S)
                    done |= finished
                    todo.extendleft(reversed(lost))
                else:
                    at = todo.popleft()
                    done[at] = self.local.answers(*map(list, zip(*units[at], strict=True)), step)
                    self.pool.finished(0)
                if len(done) < len(units):
                    yield None
            yield [answer for at in range(len(units)) for answer in done[at]]

    def weights(self) -> dict[str, Any]:
        """Returns copies of the weights that train, on the CPU."""
        return {
            name: p.detach().cpu()
            for name, p in self.model.named_parameters()
            if p.requires_grad and value_model.NAME not in name
        }


class Pool:
    """`count` actors; a lost one is replaced, by another that starts once the cluster has room for it."""

    def __init__(self, recipe: Recipe, count: int, gpu: bool):
        import ray

        scale = recipe.job.scale
        self.kind = ray.remote(
            num_cpus=scale.cpus_per_worker, num_gpus=int(gpu), scheduling_strategy="SPREAD",
            runtime_env={"env_vars": hardware.worker_env(scale, gpu)},
        )(RolloutWorker)  # fmt: skip
        self.recipe, self.starting, self.idle, self.busy = recipe, {}, [], {}
        for number in range(count):
            self._start(number)

    def _start(self, number: int) -> None:
        actor = self.kind.options(name=None).remote(self.recipe)
        self.starting[actor.__ray_ready__.remote()] = (number, actor)

    @contextmanager
    def given(self, weights: dict[str, Any], step: int):
        """Provides a function that gives units of work (by their places in a list) to free processes, which use these weights."""
        import ray

        kept = ray.put(weights)

        def ask(todo: deque[int], units: list) -> None:
            while todo and self.idle:
                at, (number, actor) = todo.popleft(), self.idle.pop()
                prompts, numbers = map(list, zip(*units[at], strict=True))
                self.busy[actor.draw.remote(step, [kept], prompts, numbers, step)] = (at, number, actor)

        yield ask

    def finished(self, seconds: float) -> tuple[dict[int, list[Rollout]], list[int]]:
        """Waits until a process has finished its unit, has started or is lost, at most `seconds`. Returns ({place of a unit: its answers},
        [places of units to draw again])."""
        import ray

        found: dict[int, list[Rollout]] = {}
        lost = []
        for future in ray.wait([*self.busy, *self.starting], num_returns=1, timeout=seconds)[0]:
            at = self.busy[future][0] if future in self.busy else None
            number, actor = self.busy.pop(future)[1:] if at is not None else self.starting.pop(future)
            try:
                result = ray.get(future)
            except ray.exceptions.RayActorError as e:
                if "creation task" in str(e):  # another would fail in the same way
                    raise
                say(f"rollout worker {number} is lost ({type(e).__name__}); another is started in its place")
                self._start(number)
                lost += [at] if at is not None else []
                continue
            if at is None:
                say(f"rollout worker {number} has started")
            else:
                found[at] = result
            self.idle.append((number, actor))
        return found, lost
