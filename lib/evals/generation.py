"""Tasks that are scored on generated answers: each run answers the same prompts, by each way of decoding."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from lib.evals import diversity
from lib.evals.context import Context
from lib.evals.decoding import Decoding
from lib.evals.statistics import Estimate
from lib.evals.summary import CLOCK
from lib.evals.task import Example, Scores, Task

ALWAYS = ("length", "distinct_1", "distinct_2", "self_bleu", *CLOCK)
"""Metrics that every task has besides its own."""


def measure(task: Task, context: Context) -> list[Scores]:
    """The task's own metrics, and the length of the answers, for every run and decoding."""
    job = context.job
    examples = task.examples(job.limit)
    if not examples:
        raise ValueError(f"tasks: {task.name} has no examples")
    prompts = [e.prompt for e in examples]
    cells = [(run, how) for how in job.decodings() for run in job.runs]
    asked = [context.engine.generate(run, prompts, how.sampling) for run, how in cells]
    found = []
    for (run, how), future in zip(cells, asked, strict=True):
        answers, rewards = chosen(context, how, examples, future.result())
        with ThreadPoolExecutor(getattr(task, "at_once", 1)) as pool:
            scored = list(pool.map(task.score, examples, [a.text for a in answers]))
        common = {"task": task.name, "run": run, "decoding": how.name}
        lower = getattr(task, "lower", ())
        for place, name in enumerate(dict.fromkeys(name for s in scored for name in s)):
            at = [i for i, s in enumerate(scored) if name in s]  # a metric may be about some examples only
            parts = [v if isinstance(v := scored[i][name], tuple) else (float(v), 1.0) for i in at]
            values, bottoms = [p[0] for p in parts], [p[1] for p in parts]
            ratio = any(b != 1 for b in bottoms)
            found.append(
                Scores(
                    metric=name,
                    ids=[examples[i].id for i in at],
                    tops=values,
                    bottoms=bottoms if ratio else None,
                    kind="proportion" if set(values) <= {0.0, 1.0} and not ratio else "mean",
                    better="lower" if name in lower else "higher",
                    headline=place == 0,
                    version=str(task.version),
                    **common,
                )
            )
        lengths = [float(len(a.tokens)) for a in answers]
        found.append(
            Scores(
                metric="length",
                ids=[e.id for e in examples],
                tops=lengths,
                better="",
                unit="tokens per answer",
                **common,
            )
        )
        found += _how(context, [a.text for a in answers], [future, *rewards], common)
        context.record(task.name, run, examples, [a.text for a in answers], scored, how.name)
    for name in {s.metric for s in found}:  # one run may have only 0s and 1s where another has shares
        alike = [s for s in found if s.metric == name]
        if len({s.kind for s in alike}) > 1:
            for s in alike:
                s.kind = "mean"
    return found


def _how(context: Context, texts: list[str], work: list[Future], common: dict) -> list[Scores]:
    """What the decoding cost and how varied it was: values of the whole cell, with no interval."""
    seconds = sum(context.engine.took(f)[0] for f in work)
    writing, tokens = context.engine.took(work[0])
    n = len(texts)
    values = {
        "distinct_1": (diversity.distinct(texts, 1), "", ""),
        "distinct_2": (diversity.distinct(texts, 2), "", ""),
        "self_bleu": (diversity.self_bleu(texts, context.job.seed), "", ""),
        "seconds_per_answer": (seconds / n, "s", "lower"),
        "tokens_per_second": (tokens / writing if writing else None, "", "higher"),
    }
    if context.job.usd_per_hour:
        values["usd_per_1000"] = (seconds / n / 3600 * context.job.usd_per_hour * 1000, "$", "lower")
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


def chosen(context: Context, how: Decoding, examples: list[Example], answers: list[list]) -> tuple[list, list[Future]]:
    """(one answer to each prompt: the only one, or of several the one with the highest reward, the first of equals; the
    requests that took)."""
    if not how.best_of:
        return [each[0] for each in answers], []
    conversations = [
        [*e.prompt, {"role": "assistant", "content": a.text}]
        for e, each in zip(examples, answers, strict=True)
        for a in each
    ]
    asked = context.engine.reward(context.scorer, conversations)
    rewards, n = asked.result(), how.sampling.n
    return [each[max(range(n), key=lambda k: rewards[i * n + k])] for i, each in enumerate(answers)], [asked]
