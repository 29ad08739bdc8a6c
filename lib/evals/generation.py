"""Tasks that are scored on generated answers: each run answers the same prompts, greedily."""

from __future__ import annotations

from lib.evals.context import Context
from lib.evals.task import Scores, Task
from lib.generate import Sampling


def measure(task: Task, context: Context) -> list[Scores]:
    """The task's own metrics, and the length of the answers, for every run."""
    job = context.job
    sampling = Sampling(max_new_tokens=job.max_new_tokens)
    examples = task.examples(job.limit)
    if not examples:
        raise ValueError(f"tasks: {task.name} has no examples")
    asked = {run: context.engine.generate(run, [e.prompt for e in examples], sampling) for run in job.runs}
    found = []
    for run, future in asked.items():
        answers = [a[0] for a in future.result()]
        scored = [task.score(e, a.text) for e, a in zip(examples, answers, strict=True)]
        common = {"task": task.name, "run": run, "ids": [e.id for e in examples], "decoding": str(sampling)}
        for i, name in enumerate(scored[0]):
            values = [float(s[name]) for s in scored]
            kind = "proportion" if set(values) <= {0.0, 1.0} else "mean"
            found.append(
                Scores(metric=name, tops=values, kind=kind, headline=i == 0, version=str(task.version), **common)
            )
        lengths = [float(len(a.tokens)) for a in answers]
        found.append(Scores(metric="length", tops=lengths, better="", unit="tokens per answer", **common))
        context.record(task.name, run, examples, [a.text for a in answers], scored)
    for name in {s.metric for s in found}:  # one run may have only 0s and 1s where another has shares
        alike = [s for s in found if s.metric == name]
        if len({s.kind for s in alike}) > 1:
            for s in alike:
                s.kind = "mean"
    return found
