"""Tasks that are scored on generated answers: each run answers the same prompts with each decoding."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from lib.data import reasoning
from lib.evals.context import Context
from lib.evals.measures import diversity, search
from lib.evals.report import length
from lib.evals.report.summary import CLOCK
from lib.evals.statistics.intervals import Estimate
from lib.evals.task import Example, Scores, Task

ALWAYS = ("length", length.METRIC, "written", "distinct_1", "distinct_2", "self_bleu", *CLOCK)
"""Metrics that every such task has besides its own."""


def measure(task: Task, context: Context) -> list[Scores]:
    """Returns, for every run and decoding, the task's own metrics and those in ALWAYS.

    Scored is what follows an answer's reasoning (lib/data/reasoning.py); reasoning that isn't closed leaves nothing to score.
    """
    job = context.job
    examples = task.examples(job.limit)
    if not examples:
        raise ValueError(f"tasks: {task.name} has no examples")
    found = []
    for run, how, got in search.cells(context, task.name, [e.prompt for e in examples], getattr(task, "final", None)):
        answers = got.answers
        with ThreadPoolExecutor(getattr(task, "at_once", 1)) as pool:
            scored = list(pool.map(task.score, examples, [reasoning.answer(a.text) for a in answers]))
        common = {"task": task.name, "run": run, "decoding": how.name}
        found += metrics(task, list(zip(examples, scored, strict=True)), run=run, decoding=how.name)
        lengths = [float(len(a.tokens)) for a in answers]
        alike = {"groups": [e.group for e in examples] if any(e.group for e in examples) else None}
        found.append(length.scores(ids=[e.id for e in examples], answers=answers, **alike, **common))
        found.append(
            Scores(
                metric="length",
                ids=[e.id for e in examples],
                tops=lengths,
                **alike,
                better="",
                unit="tokens per answer",
                **common,
            )
        )
        found += _how(context, got, common)
        context.record(task.name, run, examples, [a.text for a in answers], scored, how.name)
    return found


def metrics(task: Task, scored: list[tuple[Example, dict]], **of) -> list[Scores]:
    """Returns one Scores for each of task.metrics that was scored, for one run's answers. Raises ValueError for a score that
    task.metrics doesn't declare, and for a ratio whose score isn't a pair."""
    if undeclared := {name for _, s in scored for name in s} - set(task.metrics):
        raise ValueError(
            f"tasks: {task.name} scores {', '.join(sorted(undeclared))}, but its metrics declare only {', '.join(task.metrics)}."
        )
    found = []
    for name, statistic in task.metrics.items():
        at = [(e, s[name]) for e, s in scored if name in s]  # a metric may cover only some of the examples
        if not at:
            continue
        ratio = statistic.kind in ("ratio", "perplexity")
        if any(isinstance(v, tuple) is not ratio for _, v in at):
            raise ValueError(
                f"tasks: {task.name}: {name} is declared as a {statistic.kind}, so its scores must {'' if ratio else 'not '}be pairs."
            )
        groups = [e.group for e, _ in at]
        found.append(
            Scores(
                metric=name,
                ids=[e.id for e, _ in at],
                tops=[float(v[0] if ratio else v) for _, v in at],
                bottoms=[float(v[1]) for _, v in at] if ratio else None,
                groups=groups if len(set(groups)) < len(groups) and any(groups) else None,
                kind=statistic.kind,
                better=statistic.better,
                headline=name == next(iter(task.metrics)),
                version=str(task.version),
                task=task.name,
                **of,
            )
        )
    return found


def _how(context: Context, got: search.Found, common: dict) -> list[Scores]:
    """Returns cost and diversity of one run and decoding: values over all answers, without intervals."""
    took = [context.engine.took(f) for f in got.writing]
    writing, tokens = sum(s for s, _ in took), sum(t for _, t in took)
    seconds = writing + sum(context.engine.took(f)[0] for f in got.judging)
    texts = [a.text for a in got.answers]
    n = len(texts)
    values = {
        "written": (tokens / n, "tokens per answer", "lower"),
        "distinct_1": (diversity.distinct(texts, 1), "", ""),
        "distinct_2": (diversity.distinct(texts, 2), "", ""),
        "self_bleu": (diversity.self_bleu(texts, context.job.seed), "", ""),
        "seconds_per_answer": (seconds / n, "s", "lower"),
        "tokens_per_second": (tokens / writing if writing else None, "", "higher"),
    }
    if context.job.usd_per_hour:
        shared = 1 if context.engine.gpu else context.engine.count  # on CPUs the processes share the machine
        values["usd_per_1000"] = (seconds / shared / n / 3600 * context.job.usd_per_hour * 1000, "$", "lower")
    return [
        Scores(
            metric=name,
            ids=[],
            tops=[],
            unit=unit,
            better=better,
            estimate=Estimate(v, None, None, n, "of all"),
            **common,
        )
        for name, (v, unit, better) in values.items()
        if v is not None
    ]
