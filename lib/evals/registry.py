"""The registry of tasks and measures by name. To add a task, add an entry to TASKS. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lib.evals.context import Context
from lib.evals.measures import (
    bertscore,
    classification,
    denoising,
    embedding,
    generation,
    language_modelling,
    linear_probe,
    lm_eval_harness,
    mt_bench,
    preference,
    refusals,
)
from lib.evals.task import Example, Scores, Task
from lib.evals.tasks import demo, harness_tasks
from lib.evals.tasks.code import HumanEval, Mbpp
from lib.evals.tasks.demo_steps import DemoSteps
from lib.evals.tasks.gsm8k import Gsm8k
from lib.evals.tasks.harness_tasks import LmEval
from lib.evals.tasks.ifeval import IfEval
from lib.evals.tasks.jailbreak import Jailbreak
from lib.evals.tasks.reference import Reference
from lib.evals.tasks.xstest import XsTest

TASKS: dict[str, Callable[[str | None], Task]] = {
    "demo": lambda address: demo.DemoTask(),
    "demo_steps": lambda address: DemoSteps(),
    "gsm8k": Gsm8k,
    "gsm8k_direct": partial(Gsm8k, direct=True),
    "humaneval": HumanEval,
    "ifeval": IfEval,
    "jailbreak": Jailbreak,
    "mbpp": Mbpp,
    "reference": Reference,
    "xstest": XsTest,
}
"""Tasks that score an answer by itself, so that reinforcement learning can also use them as rewards. Each is called with
the address in task_data.<name>, or None."""

RULES: dict[str, Callable[[Example, str, str], float]] = {
    "demo": demo.better,
}
"""Tasks with a stated rule for which of two answers is better: 1.0, 0.5 or 0.0."""

MEASURES: dict[str, Callable[[Context], list[Scores]]] = {
    "perplexity": language_modelling.perplexity,
    "kl": language_modelling.kl,
    "preference_accuracy": preference.accuracy,
    "win_rate": preference.win_rate,
    "arena": preference.arena,
    "mt_bench": mt_bench.measure,
    "bertscore": bertscore.measure,
    "refusal_labels": refusals.agreement,
    "sts": embedding.sts,
    "retrieval": embedding.retrieval,
    "linear_probe": linear_probe.measure,
    "classification": classification.accuracy,
    "scores": classification.scores,
    **denoising.MEASURES,
}
"""Measures that need more than a model's answers: likelihoods, rewards, another run or a judge."""

KINDS = {**denoising.KINDS, **embedding.KINDS, **linear_probe.KINDS, **classification.KINDS}
"""{measure: kind of model that it measures}; all other tasks and measures need a causal_lm."""


def names() -> list[str]:
    """Returns the names that get() accepts, except those of lm-eval's tasks."""
    return [*TASKS, *MEASURES]


def get(
    name: str, addresses: dict[str, str] | None = None, lm_eval: LmEval | None = None
) -> Callable[[Context], list[Scores]]:
    """Returns the function that measures `name`. Raises ValueError with the nearest names."""
    if name in TASKS:
        found = task(name, (addresses or {}).get(name))
        return partial(refusals.measure if isinstance(found, XsTest) else generation.measure, found)
    if name in MEASURES:
        return MEASURES[name]
    if name.startswith(harness_tasks.PREFIX):
        harness_tasks.check(name, lm_eval or LmEval())
        return partial(lm_eval_harness.measure, name)
    raise ValueError(_unknown(name, names()))


def task(name: str, address: str | None = None) -> Task:
    """Returns the task `name`. Raises ValueError with the nearest names."""
    if name not in TASKS:
        raise ValueError(_unknown(name, list(TASKS)))
    return TASKS[name](address)


def _unknown(name: str, known: list[str]) -> str:
    from lib.errors import nearest

    return f"tasks: there is no {name}.{nearest(name, known)} Known: {', '.join(known)}, and lm-eval's as lm_eval:NAME."
