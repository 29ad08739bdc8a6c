"""Measures of classifiers on held-out rows.

classification  accuracy: share of the rows whose most likely class is right; chance is the share of the most frequent class
                macro_f1: mean over the rows' classes of F1 = 2 TP / (2 TP + FP + FN), which rare classes count in as much as frequent ones
scores          Spearman's rank correlation of a regression's scores with people's
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lib.data import Check
from lib.evals.context import Context
from lib.evals.statistics.intervals import Estimate
from lib.evals.task import Scores
from lib.generation.model_spec import Spec
from lib.models import locate

KINDS = {"classification": "classifier", "scores": "classifier"}
"""As in lib/evals/measures/denoising.py."""


def accuracy(context: Context) -> list[Scores]:
    """Returns the scores of each run on the held-out rows."""
    rows = context.rows("classification")
    texts, seconds, wanted = ([row[column] for row in rows] for column in ("text", "second", "label"))
    chance = max(Counter(wanted).values()) / len(wanted)
    ids = [f"row-{i}" for i in range(len(rows))]
    found = []
    for run, future in {run: context.engine.classify(run, texts, seconds) for run in context.job.runs}.items():
        given = future.result()
        tops = [float(a == b) for a, b in zip(given, wanted, strict=True)]
        found.append(
            Scores("classification", "accuracy", run, ids, tops, kind="proportion", headline=True, chance=chance)
        )
        f1 = Estimate(macro_f1(wanted, given), None, None, len(ids), "no interval: a mean of the classes' ratios")
        found.append(Scores("classification", "macro_f1", run, ids, [], estimate=f1))
    return found


def macro_f1(wanted: Sequence[str], given: Sequence[str]) -> float:
    """Returns the mean of F1 over the classes in `wanted`."""
    right = Counter(a for a, b in zip(wanted, given, strict=True) if a == b)
    of, said = Counter(wanted), Counter(given)
    return sum(2 * right[name] / (of[name] + said[name]) for name in of) / len(of)


def scores(context: Context) -> list[Scores]:
    """Returns the correlation of each run on the held-out pairs."""
    rows = context.rows("scores")
    firsts, seconds, wanted = ([row[column] for row in rows] for column in ("a", "b", "score"))
    ids = [f"row-{i}" for i in range(len(rows))]
    found = []
    for run, future in {run: context.engine.rate(run, firsts, seconds) for run in context.job.runs}.items():
        found.append(Scores("scores", "spearman", run, ids, [*future.result()], wanted, kind="spearman", headline=True))
    return found


def problems(tasks: Sequence[str], specs: Sequence[Spec], checked: Check | None) -> list[str]:
    """Returns what the runs can't be asked, each message beginning with its key. checked: of the held-out rows of `classification`. A
    model that isn't on this machine isn't checked."""
    out = []
    for spec in specs:
        if not {*tasks} & {*KINDS} or spec.makes != "classifier" or not (config := locate.config(spec.base)):
            continue
        rates = config.get("problem_type") == "regression"
        if wrong := [task for task in tasks if task in KINDS and (task == "scores") != rates]:
            is_a, other = ("a regression", "scores") if rates else ("a classifier", "classification")
            out.append(f"tasks: {wrong[0]}: runs.{spec.name} is {is_a}. Use {other}.")
        names = {*(config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}).values()}
        unknown = sorted((checked.heldout_classes if checked and not rates else {}).keys() - names)
        if unknown:
            out.append(
                f"tasks: classification: held-out rows have labels that runs.{spec.name} has no class for: {', '.join(unknown[:5])}. "
                f"Its classes are {', '.join(sorted(names)[:12])}."
            )
    return out
