"""What trials are compared by: a column of metrics.jsonl, or an evaluation task."""

from __future__ import annotations

LOWER = ("perplexity", "kl")
"""Tasks that are no entry of TASKS and of which lower is better."""


def task_of(metric: str) -> str | None:
    """Returns the task of a metric TASK or TASK.NAME; None if it is a column of metrics.jsonl."""
    from lib.evals import registry
    from lib.evals.tasks.harness_tasks import PREFIX

    if metric.startswith(PREFIX):
        head, dot, last = metric.rpartition(".")
        return head if dot and "/" not in last and last not in ("yaml", "yml") else metric
    head = metric.partition(".")[0]
    return head if head in registry.names() else None


def lower_is_better(metric: str) -> bool:
    from lib.evals import registry

    task = task_of(metric)
    if task not in registry.TASKS:
        return "loss" in metric or task in LOWER
    metrics = registry.TASKS[task](None).metrics
    statistic = metrics.get(metric.removeprefix(f"{task}."), next(iter(metrics.values())))
    return statistic.better == "lower"
