"""An evaluation task as the metric of a search: each finished trial is measured as jobs/eval.py would measure it.

Trials are compared on the first half of the examples and confirmed on the second. Held-out rows are divided as they are for the held-out loss,
by which trials may be stopped; the examples of other tasks by a hash of their id (or group).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from lib.errors import UsageError, nearest
from lib.run import Run
from tune import metrics
from tune.steps import filled, words

if TYPE_CHECKING:
    from lib.config.job import Job
    from lib.evals.job import EvalJob
    from lib.evals.task import Scores
    from tune.settings import Settings

Half = Literal["both", "first", "second"]
TRIAL = "trial"
"""The trial's name among the runs of its evaluation."""
FOLLOWS = {
    "run": "run",
    "tasks": "metric",
    "data.heldout_half": "fresh_rows",
    f"runs.{TRIAL}": "the trial",
    "engine": "the trial, whose process evaluates with transformers",
    "workers": "set.scale.workers",
    "device": "set.scale.device",
}
"""{key of jobs/eval.py that can't be set: what it follows from}"""
FILE = "evaluation.json"


def job(settings: Settings, trained: Job, half: Half = "both") -> EvalJob:
    """Returns the evaluation of the run that `trained` makes, on that half of the held-out rows. Raises UsageError for a wrong key or value of
    `evaluate`."""
    from lib.evals import cli

    try:
        asked: EvalJob = cli.parse(words(settings.evaluate)).job
    except ValueError as e:
        raise _named(e) from None
    task, rewards = metrics.task_of(settings.metric) or "", trained.makes == "reward"
    pair = {"base": trained.model.base} if task in ("win_rate", "kl") and not asked.runs else asked.runs
    data = asked.data if any(k.startswith("data.") for k in settings.evaluate) else trained.data
    return replace(
        asked,
        run=trained.run,
        tasks=[task],
        runs={} if rewards else {**pair, TRIAL: trained.run},
        reward=trained.run if rewards else asked.reward,
        data=replace(data, heldout_half=half),
        engine="transformers",
        workers=trained.scale.workers,
        device="cpu" if trained.scale.device == "cpu" else "auto",
    )


def problems(settings: Settings) -> list[str]:
    """Returns what is wrong with `metric`, `stop_by` and `evaluate` by themselves."""
    from lib.evals import registry
    from lib.evals.measures import generation

    task, out = metrics.task_of(settings.metric), []
    if not task and "." in settings.metric:
        head, known = settings.metric.partition(".")[0], registry.names()
        return [
            f"metric: there is no task {head}.{nearest(head, known)} Known: {', '.join(known)}, and lm-eval's as lm_eval:NAME."
        ]
    if not task:
        out += ["evaluate: has no effect, since metric is a column of metrics.jsonl."] if settings.evaluate else []
        out += ["stop_by: only with a task as metric."] if settings.stop_by else []
        return out
    if task in registry.TASKS and "." in settings.metric:
        known = [*registry.TASKS[task](None).metrics, *(m for m in generation.ALWAYS if m.startswith("length"))]
        name = settings.metric.removeprefix(f"{task}.")
        if name not in known:
            out.append(f"metric: {task} has no {name}.{nearest(name, known)} It has {', '.join(known)}.")
    if settings.stop_by and ("." in settings.stop_by or settings.stop_by in registry.names()):
        out.append(f"stop_by: {settings.stop_by}: must be a column of metrics.jsonl, such as eval_loss.")
    for key in settings.evaluate:
        if key in FOLLOWS:
            out.append(f"evaluate.{key}: can't be set: it follows from {FOLLOWS[key]}.")
    if len(settings.evaluate.get("decoding") or ["greedy"]) > 1:
        out.append("evaluate.decoding: name one; a metric has one value.")
    return out


def check(settings: Settings, trained: Job, stand_ins: dict[str, str]) -> int | None:
    """Checks the evaluation of a trial, with the job's base in place of its model. Returns the number of examples, if it is known.
    stand_ins: {earlier step: the model that stands for its run}.

    Raises ValueError with every problem.
    """
    from lib.evals import plan

    wanted = job(settings, trained)
    if wanted.runs:  # of a reward stage, only a trained model can be checked
        runs = wanted.runs | {TRIAL: trained.model.base}
        wanted = replace(wanted, runs={name: filled(base, stand_ins) for name, base in runs.items()})
        try:
            return plan.plan(wanted).counts.get(wanted.tasks[0])
        except ValueError as e:
            raise _named(e) from None
    return None


def _named(e: ValueError) -> UsageError:
    """Returns the error with the key that it comes from before each problem."""
    return UsageError("\n".join(f"evaluate: {line}" for line in str(e).splitlines()))


def measured(settings: Settings, trained: Job, run: Run, half: Half) -> dict[str, float]:
    """Measures a finished run in this process or, if trials have several workers, in as many. Returns {TASK.NAME: value} of its metrics over
    the half ("first", "second" or "both") of the examples, and of the search's own metric the examples' scores in FILE.

    Raises ValueError or RuntimeError if the evaluation fails.
    """
    import torch

    from lib.evals import evaluate, plan
    from lib.evals.rows import ROWS
    from lib.generation.pool import Engine
    from lib.generation.result_cache import Ledger
    from lib.runtime import logs

    planned, here = plan.plan(job(settings, trained, half)), trained.scale.workers == 1
    kind, demo = ROWS.get(planned.job.tasks[0]), planned.job.data.source == "demo"
    if kind and not (demo and kind == ("prompt",)):  # the demo's prompts are the examples of its task
        half = "both"  # of the rows that were read
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with logs.kept(run, "evaluation"):
        panel = evaluate.panel_of(planned.job)
        kept = Ledger(Run(settings.run))  # answers of a model that all trials are compared with are generated once
        with Engine(planned.specs, planned.job.workers, print, kept, planned.job.device, here) as engine:
            _, scores = evaluate.measure(planned, engine, panel)
    found, examples = columns(scores, TRIAL if planned.job.runs else planned.scorer or "", half)
    if settings.metric in examples:
        run.write_json(FILE, examples[settings.metric])
    return found


def columns(scores: list[Scores], name: str, half: Half) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Returns ({TASK.METRIC or TASK.METRIC.JUDGE: value} of run `name`, the same of {ids, batches: [[top, bottom] of each example]}).

    The task's name alone is its headline metric, unless several judges give it. A metric that isn't made of examples, such as a rating, is
    left out. Examples of one group are one entry of batches.
    """
    from lib.data.split import digest
    from lib.data.split import half as half_of

    values, kept = dict[str, float](), dict[str, dict[str, Any]]()
    mine = [s for s in scores if s.run == name and s.tops]
    heads = [s for s in mine if s.headline] or mine[:1]
    for s in mine:
        sums: dict[str, list[float]] = {}
        for i, g, t, b in zip(s.ids, s.groups or s.ids, s.tops, s.bottoms or [1.0] * len(s.tops), strict=True):
            if half == "both" or half_of(digest(g or i)) == half:
                both = sums.setdefault(g or i, [0.0, 0.0])
                both[0], both[1] = both[0] + t, both[1] + b
        if not sum(b for _, b in sums.values()):
            continue
        ratio = sum(t for t, _ in sums.values()) / sum(b for _, b in sums.values())
        full = ".".join(part for part in (s.task, s.metric, s.judge) if part)
        for key in [full, *([s.task] if heads == [s] else [])]:
            values[key] = math.exp(min(ratio, 700)) if s.kind == "perplexity" else ratio
            kept[key] = {"ids": list(sums), "batches": list(sums.values()), "kind": s.kind}
    return values, kept
