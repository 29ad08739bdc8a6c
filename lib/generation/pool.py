"""Runs models behind a queue: one process per GPU (or CPU core), each holding the one or two models of its current shard.

A request (a list of prompts for one model) is split into shards of rows of similar length. A free process takes a shard for
the model it holds if there is one, otherwise for a model that no other process holds; so models are rarely loaded twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from lib.generation import result_cache, vllm_generator
from lib.generation.model_spec import Spec
from lib.generation.pool_worker import Process, Worker
from lib.generation.result_cache import Ledger
from lib.runtime import hardware, node_types, waiting
from lib.runtime.device import of_worker
from lib.runtime.failure import StopTraining

SHARD = 64
"""Maximum number of answers (or rows to score) per shard, the unit of work that a process takes from the queue."""
TEXT = 16_000
"""Approximate number of characters per shard of rows to score."""


TASK: ContextVar[str] = ContextVar("task", default="")
"""The task of the current thread, so that the report can attribute a model's time to tasks."""


@dataclass
class Request:
    model: str
    what: str
    total: int
    future: Future
    results: list[Any]
    started: float = field(default_factory=time.time)
    done: int = 0
    seconds: float = 0.0
    """Work time summed over processes, excluding model loading."""
    tokens: int = 0
    tasks: list[str] = field(default_factory=list)
    """The tasks that made this request; identical requests of several tasks are answered once."""

    def note(self) -> None:
        """Records the current thread's task."""
        if (task := TASK.get()) and task not in self.tasks:
            self.tasks.append(task)


class Engine:
    """Schedules requests on the worker processes. Use as a context manager; Ray must be connected.

    say: receives progress lines. kept: the ledger that stores the results of finished shards; None stores nothing. device: auto
    or cpu. here: the models run in this process, on its device, and not in others.
    """

    def __init__(
        self,
        specs: Sequence[Spec],
        workers: int | None = None,
        say: Callable[[str], None] = print,
        kept: Ledger | None = None,
        device: str = "auto",
        here: bool = False,
    ):
        self.specs, self.say, self.began, self.kept = {s.name: s for s in specs}, say, time.time(), kept
        self.here = here
        self.gpu = device != "cpu" and (of_worker() == "cuda" if here else hardware.gpus() > 0)
        self.count = 1 if here else _count(workers, "GPU" if self.gpu else "CPU")
        self.queue: list[tuple[Request, str, list[int], tuple, str]] = []
        self.asked: dict[str, Request] = {}
        self.holds: dict[int, str | None] = {}
        self.loading = 0.0
        self.waiting = waiting.of_cluster(self.count, {"CPU": 1, "GPU": int(self.gpu)})
        self.changed, self.closed = threading.Condition(), False
        self.threads = [threading.Thread(target=self._serve, args=(i,), daemon=True) for i in range(self.count)]

    def __enter__(self) -> Engine:
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *exc) -> None:
        self.close()
        for t in self.threads:
            t.join()

    def close(self) -> None:
        """Starts no more shards and fails pending requests; running shards finish first."""
        with self.changed:
            self.closed, self.queue = True, []
            for r in self.asked.values():
                if not r.future.done():
                    r.future.set_exception(RuntimeError(f"{r.model}: stopped at {r.done} of {r.total} {r.what}"))
            self.changed.notify_all()

    def generate(self, model: str, prompts: list, sampling) -> Future:
        """Returns a future of list[list[Answer]], one list per prompt."""
        return self._ask(model, "generate", f"answers ({sampling})", [prompts], (sampling,))

    def score(self, model: str, prompts: list, completions: list, tools: list | None = None) -> Future:
        """Returns a future of list[Score], one per prompt and completion."""
        return self._ask(
            model, "score", "log-probabilities", [prompts, completions, tools or [None] * len(prompts)], ()
        )

    def reward(self, model: str, conversations: list) -> Future:
        """Returns a future of list[float], one reward per conversation."""
        return self._ask(model, "reward", "rewards", [conversations], ())

    def denoise(self, model: str, how: str, texts: list[str], seconds: list[str | None]) -> Future:
        """Returns a future of list[(top, bottom)], as lib/generation/denoiser.py measures `how`, one per text."""
        return self._ask(model, "denoise", how.replace("_", " "), [texts, seconds, [how] * len(texts)], ())

    def classify(self, model: str, texts: list[str], seconds: list[str | None]) -> Future:
        """Returns a future of list[str], the class of each text, or of each pair where the second isn't None."""
        return self._ask(model, "classify", "classes", [texts, seconds], ())

    def rate(self, model: str, texts: list[str], seconds: list[str | None]) -> Future:
        """Returns a future of list[float], the score of each."""
        return self._ask(model, "rate", "scores", [texts, seconds], ())

    def embed(self, model: str, texts: list[str], role: str = "") -> Future:
        """Returns a future of list[tuple of floats], one vector of length 1 per text. role: of all texts, as lib/models/pooling.py has them."""
        return self._ask(model, "embed", "vectors", [texts, [role] * len(texts)], ())

    def took(self, future: Future) -> tuple[float, int]:
        """Returns (seconds of work, tokens) of the request behind `future`, as measured when it was computed."""
        with self.changed:
            request = next(r for r in self.asked.values() if r.future is future)
        return request.seconds, request.tokens

    def timings(self) -> list[dict]:
        """Returns the statistics of each request: model, what, rows, seconds of work, tokens, requesting tasks."""
        return [{k: v for k, v in vars(r).items() if k not in ("future", "results")} for r in self.asked.values()]

    def _ask(self, model: str, method: str, what: str, columns: list[list], rest: tuple) -> Future:
        """Queues a request. Identical requests are computed once, and shards in the ledger are not recomputed."""
        weights = self._weights(self.specs[model])
        if rest and rest[0].other:
            weights += f" with {self._weights(self.specs[rest[0].other])}"
        key = result_cache.key(weights, method, (columns, rest))
        n = len(columns[0])
        with self.changed:
            if key in self.asked:
                self.asked[key].note()
                return self.asked[key].future
            if self.closed:
                raise RuntimeError(f"{model}: {what} not requested, because another request failed")
            request = self.asked[key] = Request(model, what, n, Future(), [None] * n)
            request.note()
            # Sorted by length of the prompt, then by prompt, so that rows with the same prompt share a shard and it is encoded once.
            order = sorted(
                range(n), key=lambda i: (len(p := str(columns[0][i])), p, sum(len(str(c[i])) for c in columns))
            )
            each = rest[0].n if rest else 1
            size = _rows(n, each, 0 if rest else sum(len(str(x)) for c in columns for x in c))
            for begin in reversed(range(0, n, size)):  # longest first, so that no process is left with them at the end
                rows = order[begin : begin + size]
                args = tuple([c[i] for i in rows] for c in columns) + rest
                shard = result_cache.key(weights, method, args)
                if self.kept and (found := self.kept.get(shard, len(rows))):
                    self._add(request, rows, *found)
                else:
                    self.queue.append((request, method, rows, args, shard))
            kept = request.done
            if kept == n:
                request.future.set_result(request.results)
            self.changed.notify_all()
        if kept:
            self.say(f"{time.time() - self.began:5.0f} s  {model:<10} {kept}/{n} {what}, from the ledger")
        return request.future

    def _weights(self, spec: Spec) -> str:
        """Returns everything but the request that determines a result: the weights and the software and device that run them."""
        from importlib.metadata import version

        device, runs = "gpu" if self.gpu else "cpu", f"transformers {version('transformers')} torch {version('torch')}"
        dtype = (
            spec.dtype if self.gpu else hardware.dtype(spec.dtype, device)
        )  # a GPU elsewhere in the cluster can't be inspected from this process
        if spec.vllm and not spec.reward:
            runs, dtype = f"vllm {vllm_generator.version()}", spec.dtype  # vLLM's auto is the dtype of the weights
        return f"{spec.identity or spec.base} {spec.reward} {spec.trained_template} {dtype} {device} {runs}"

    def _next(self, me: int):
        held = self.holds.get(me)
        others = {m for i, m in self.holds.items() if i != me}
        for wanted in (lambda m: m == held, lambda m: m not in others, lambda m: True):
            for i, item in enumerate(self.queue):
                if wanted(item[0].model):
                    self.holds[me] = item[0].model
                    return self.queue.pop(i)

    def _serve(self, me: int) -> None:
        process: Process | Worker | None = None
        while True:
            with self.changed:
                while not self.queue and not self.closed:
                    self.changed.wait()
                if self.closed:
                    break
                before = self.holds.get(me)
                request, method, rows, args, shard = self._next(me)
            if request.model != before:
                self.say(f"{time.time() - self.began:5.0f} s  {request.model:<10} loading")
            vllm = any(self.specs[m].vllm for m in (before, request.model) if m)
            if process and vllm and request.model != before:
                process.end()  # vLLM frees GPU memory only when its process ends
                process = None
            try:
                process = process or self._begin(me)
                results, seconds, loading = process.run(request.model, method, args)
                if self.kept:
                    self.kept.put(shard, request.model, request.what, results, seconds)
                self._done(request, rows, results, seconds, loading)
            except Exception as e:
                self._failed(request, _cause(e))
        if process:
            process.end()

    def _begin(self, me: int) -> Process | Worker:
        if self.here:
            import torch

            return Worker(self.specs, torch.get_num_threads(), None, me)
        log = self.kept.run.path if self.kept else None
        return Process(self.specs, 1, log, me, gpu=self.gpu, waiting=self.waiting)

    def _done(self, request: Request, rows: list[int], results: list, seconds: float, loading: float) -> None:
        with self.changed:
            self._add(request, rows, results, seconds)
            self.loading += loading
            last = request.done == request.total
        share = f"{request.done}/{request.total}"
        rate = f"  {request.tokens / max(request.seconds, 1e-9):,.0f} tokens/s" if request.tokens else ""
        self.say(f"{time.time() - self.began:5.0f} s  {request.model:<10} {share:>7} {request.what}{rate}")
        with self.changed:  # close() may fail the future at the same time
            if last and not request.future.done():
                request.future.set_result(request.results)

    @staticmethod
    def _add(request: Request, rows: list[int], results: list, seconds: float) -> None:
        for i, result in zip(rows, results, strict=True):
            request.results[i] = result
        request.done += len(rows)
        request.seconds += seconds
        request.tokens += sum(_tokens(r) for r in results)

    def _failed(self, request: Request, error: Exception) -> None:
        with self.changed:
            self.queue = [item for item in self.queue if item[0] is not request]
            if not request.future.done():
                request.future.set_exception(type(error)(f"{request.model}: {error}"))


def _count(workers: int | None, what: str) -> int:
    """Returns the number of processes. Without `workers`, as many as are up: nodes are rented only for workers that were asked for."""
    import ray

    up = max(1, int(ray.cluster_resources().get(what, 0)))
    return min(workers or up, max(up, int(node_types.most(what))))


def _rows(n: int, each: int, characters: int) -> int:
    """Returns the rows per shard for n rows with `each` answers per row, or with `characters` of text in total.

    The number of shards is even if n allows it, so that two processes get equal work, and doesn't depend on the number of
    processes, so that the answers don't either.
    """
    shards = max(-(-n * each // SHARD), -(-characters // TEXT))
    return max(1, -(-n // max(1, shards + shards % 2)))


def _tokens(result) -> int:
    """Returns the number of tokens generated or scored for one result."""
    if isinstance(result, list):
        return sum(len(a.tokens) - a.begun for a in result)
    return getattr(result, "tokens", 0)


def _cause(error: Exception) -> Exception:
    """Returns a worker's ValueError unchanged, and anything else as a RuntimeError with a remedy if one is known."""
    import ray

    cause = getattr(error, "cause", None) or error
    if type(cause) is ValueError:
        return cause
    lost = isinstance(error, ray.exceptions.RayActorError | ray.exceptions.OutOfMemoryError)
    if lost or isinstance(cause, MemoryError) or "out of memory" in str(cause):
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return RuntimeError(
            f"the process that held the model was lost twice or ran out of memory. Evidence: {first[:300]} "
            "Remedy: fewer processes at a time (workers: 1), a smaller limit, or a machine with more memory."
        )
    if isinstance(cause, StopTraining):
        return RuntimeError(str(cause))
    return RuntimeError(f"{type(cause).__name__}: {cause}")
