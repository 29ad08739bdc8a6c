"""Checks of a search's own settings. Whether its jobs are valid is checked in tune/plan.py."""

from __future__ import annotations

from lib.config.job import SECTIONS
from tune import evaluation
from tune.population import CHANGES
from tune.settings import Settings
from tune.space import Space

FOLLOWS = {
    "run": "run",
    "train.eval_strategy": "every",
    "train.eval_steps": "every",
    "train.save_strategy": "every",
    "train.save_steps": "every",
    "train.load_best_model_at_end": "every",
    "data.heldout_half": "fresh_rows",
}
"""{key of the job that a search sets: the key of the search that it follows from}"""
SHARED = {
    "scale.workers": "all trials need the same processes",
    "scale.min_workers": "all trials need the same processes",
    "scale.cpus_per_worker": "all trials need the same processes",
    "scale.device": "all trials need the same processes",
    "train.seed": "the best seed is luck; `confirm` varies it",
    "train.data_seed": "the best seed is luck; `confirm` varies it",
    "data.heldout": "trials must be compared on the same rows",
    "data.heldout_fraction": "trials must be compared on the same rows",
    "data.heldout_limit": "trials must be compared on the same rows",
}
"""{key that must be the same for all trials, and so belongs under `set`: why}"""
SCALES_LOSS = (
    "beta",
    "loss_type",
    "label_smoothing",
    "label_smoothing_factor",
    "temperature",
    "lmbda",
    "loss_weights",
    "alpha",
    "gamma",
)
"""Keys of `train` that change what the loss measures, so that a lower one is not better."""


def keys(s: Settings) -> list[str]:
    """Returns the keys of `set` and `space` that must not be there."""
    problems, compared = [], dict.fromkeys((s.metric, s.curve)) if s.scheduler != "none" else [s.metric]
    loss = next((m for m in compared if "loss" in m), "")
    named = [("set", "", key) for key in s.set]
    named += [
        (f"before.{n}.set", n, key) for n, e in s.before.items() if isinstance(e, dict) for key in e.get("set") or {}
    ]
    for full in s.space:
        step = next((n for n in s.before if full.startswith(f"{n}.")), "")
        named.append(("space", step, full.removeprefix(f"{step}.")))
    for where, step, key in named:
        varies, shown = where == "space", f"{where}.{step}.{key}" if where == "space" and step else f"{where}.{key}"
        follows = {"run": "run"} if step else FOLLOWS
        if key in (*SECTIONS, "train", "model.peft"):
            problems.append(f"{shown}: is a section. Name its key with dots: {key}.NAME.")
        elif key in follows:
            problems.append(f"{shown}: can't be set: it follows from {follows[key]}.")
        elif varies and (f"before.{step}.set" if step else "set", step, key) in named:
            problems.append(f"{shown}: is also in `set`. Leave it out of one of them.")
        elif varies and key in SHARED and not (step and key.startswith("data.")):
            problems.append(f"{shown}: must not vary: {SHARED[key]}.")
        elif varies and not step and loss and key.removeprefix("train.") in SCALES_LOSS:
            which = "metric" if loss == s.metric else "stop_by"
            problems.append(
                f"{which}: {loss} means something else at each {key}. Compare by another column, such as an accuracy."
            )
    return problems


def numbers(s: Settings) -> list[str]:
    """Returns the numbers of a search that are out of range, and missing limits."""
    out = []
    for key, value, low in (
        ("every", s.every, 1),
        ("concurrent", s.concurrent, 1),
        ("budget.trials", s.budget.trials, 1),
        ("retries", s.retries, -1),
        ("usd_per_hour", s.usd_per_hour, 0),
        ("seed", s.seed, 0),
        ("confirm", s.confirm, 0),
        ("finalists", s.finalists, 1),
    ):
        if value is not None and not low <= value < 2**32:
            out.append(f"{key}: must be at least {low}, is {value}.")
    for key, amount in (("budget.hours", s.budget.hours), ("budget.usd", s.budget.usd)):
        if amount is not None and not 0 < amount < float("inf"):
            out.append(f"{key}: must be above 0, is {amount}.")
    if not 1 < s.halving < 1e6:
        out.append(f"halving: must be above 1, is {s.halving}.")
    if s.budget.usd is not None and not s.usd_per_hour:
        out.append("budget.usd: set usd_per_hour, from which the cost is computed.")
    if s.search != "grid" and (s.budget.trials, s.budget.hours, s.budget.usd) == (None, None, None):
        out.append("budget: set trials, hours or usd: the search would never end.")
    if not s.metric.strip():
        out.append("metric: is empty. Name a column of metrics.jsonl, such as eval_loss, or a task, such as demo.")
    return out + evaluation.problems(s)


def combinations(s: Settings, found: Space) -> list[str]:
    """Returns the parameters that the chosen way to search or to stop can't vary."""
    if s.search == "grid":
        try:
            found.grid()
        except ValueError as e:
            return [str(e)]
    if s.second_objective != "none" and (s.search != "optuna" or s.scheduler != "none"):
        return [
            f"second_objective: {s.second_objective}: only with search: optuna and scheduler: none, since Optuna takes no stopped trials with it."
        ]
    if s.scheduler != "pbt":
        return []
    out = ["before: can't be combined with scheduler: pbt."] if s.before else []
    for p in found.parameters:
        if p.key not in CHANGES:
            out.append(
                f"space.{p.key}: can't change during training. With scheduler: pbt, vary only {' and '.join(CHANGES)}."
            )
        elif p.when:
            out.append(f"space.{p.key}: when can't be combined with scheduler: pbt.")
        elif not all(isinstance(v, int | float) and v > 0 for v in p.ends()):
            out.append(f"space.{p.key}: must stay above 0 with scheduler: pbt.")
    out += [f"set.{key}: can't be set: it follows from scheduler: pbt." for key in CHANGES.values() if key in s.set]
    if s.search == "grid":
        out.append("search: grid can't be combined with scheduler: pbt, whose members are drawn at random.")
    if (s.budget.trials or 0) < 2:
        out.append(
            f"budget.trials: must be at least 2 with scheduler: pbt, the members of the population, is {s.budget.trials}."
        )
    return out
