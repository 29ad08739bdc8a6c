"""Preference: how often a reward run orders held-out pairs rightly, and how often one run's answers beat another's."""

from __future__ import annotations

from lib.evals.context import Context
from lib.evals.task import Scores
from lib.sampling import Sampling


def accuracy(context: Context) -> list[Scores]:
    """Share of held-out pairs whose chosen answer gets the higher reward; equal rewards count half."""
    pairs = context.rows("preference_accuracy")
    conversations = [p["prompt"] + p[side] for side in ("chosen", "rejected") for p in pairs]
    rewards = context.engine.reward(context.judge, conversations).result()
    chosen, rejected = rewards[: len(pairs)], rewards[len(pairs) :]
    ids = [f"pair-{i}" for i in range(len(pairs))]
    right = [_half(a, b) for a, b in zip(chosen, rejected, strict=True)]
    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    common = {"task": "preference_accuracy", "run": context.judge, "ids": ids}
    found = [
        Scores(metric="preference_accuracy", tops=right, kind="proportion", headline=True, **common),
        Scores(metric="reward_margin", tops=margins, better="", unit="chosen − rejected", **common),
    ]
    if context.job.data_for("preference_accuracy").source == "demo":
        found += _by_kind(pairs, right, common)
    return found


def _by_kind(pairs: list[dict], right: list[float], common: dict) -> list[Scores]:
    """The demo's pairs by what sets them apart, since accuracy on style alone would say little."""
    from lib.data import demo

    groups: dict[str, list[int]] = {"right_against_wrong": [], "bare_against_chatty": []}
    for i, p in enumerate(pairs):
        orders = [demo.parse(p[side][-1]["content"]) for side in ("chosen", "rejected")]
        groups["bare_against_chatty" if orders[0] == orders[1] else "right_against_wrong"].append(i)
    return [
        Scores(
            metric=name,
            tops=[right[i] for i in at],
            kind="proportion",
            **{**common, "ids": [common["ids"][i] for i in at]},
        )
        for name, at in groups.items()
        if at
    ]


def win_rate(context: Context) -> list[Scores]:
    """Share of prompts on which a run's greedy answer, the one its user would get, beats the reference run's; ties half.

    Judged by the task's stated rule where the prompts have one, and by the reward run where there is one.
    """
    runs = [*context.challengers, context.reference]
    ids, decoding, beats = _met(context, "win_rate", runs)
    return [
        Scores(
            "win_rate",
            "win_rate",
            run,
            ids,
            [wins[i][-1] for wins in beats[judge]],
            kind="proportion",
            versus=context.reference,
            judge=judge,
            headline=True,
            decoding=decoding,
        )
        for i, run in enumerate(context.challengers)
        for judge in beats
    ]


def arena(context: Context) -> list[Scores]:
    """Ratings of all the runs from every pair's greedy answers to the same prompts, by rule and by the reward run; the
    first run has 1000 points, and 400 more are odds of 10 to 1."""
    import numpy as np

    from lib.evals import statistics

    runs = list(context.job.runs)
    ids, decoding, beats = _met(context, "arena", runs)
    found = []
    for judge, wins in beats.items():
        wins_NMM = np.array(wins)
        wins_NMM[:, range(len(runs)), range(len(runs))] = np.nan  # nobody meets itself
        for run, e in zip(runs, statistics.bradley_terry(wins_NMM, context.job.seed), strict=True):
            common = {"unit": "Elo points", "judge": judge, "headline": True, "decoding": decoding}
            found.append(Scores("arena", "rating", run, ids, [], estimate=e, **common))
    return found


def _met(context: Context, task: str, runs: list[str]) -> tuple[list[str], str, dict[str, list]]:
    """(ids of the prompts, decoding, {judge: for each prompt, how far each run's answer beats each run's, 0 to 1})."""
    greedy = Sampling(max_new_tokens=context.job.max_new_tokens)
    examples = context.prompts()
    prompts = [e.prompt for e in examples]
    asked = [context.engine.generate(run, prompts, greedy) for run in runs]
    answers = [[a[0].text for a in future.result()] for future in asked]
    for run, texts in zip(runs, answers, strict=True):
        context.record(task, run, examples, texts, [{}] * len(texts))
    beats: dict[str, list] = {}
    if context.rule:
        said = zip(examples, *answers, strict=True)
        beats["rule"] = [[[context.rule(e, a, b) for b in texts] for a in texts] for e, *texts in said]
    if context.judge:
        asked = [context.engine.reward(context.judge, _conversations(prompts, texts)) for texts in answers]
        rewards = zip(*(future.result() for future in asked), strict=True)
        beats[context.judge] = [[[_half(a, b) for b in each] for a in each] for each in rewards]
    return [e.id for e in examples], str(greedy), beats


def _conversations(prompts: list[list[dict]], answers: list[str]) -> list[list[dict]]:
    return [[*p, {"role": "assistant", "content": a}] for p, a in zip(prompts, answers, strict=True)]


def _half(a: float, b: float) -> float:
    """1 where a is higher, 0 where b is, 1/2 where they are equal."""
    return 0.5 + 0.5 * ((a > b) - (a < b))
