"""Preference: how often a reward run or judge orders held-out pairs correctly, and how often one run's answers beat another's."""

from __future__ import annotations

import math
from itertools import combinations, product

from lib.evals.context import Context
from lib.evals.report import length
from lib.evals.report.schema import Calibration
from lib.evals.statistics import intervals
from lib.evals.task import Scores
from lib.generation.sampling import Sampling


def accuracy(context: Context) -> list[Scores]:
    """Returns the share of held-out pairs whose chosen answer gets the higher reward, and the share whose chosen answer the judge
    prefers; ties count half."""
    pairs = context.rows("preference_accuracy")
    ids, found = [f"pair-{i}" for i in range(len(pairs))], []
    if context.scorer:
        conversations = [p["prompt"] + p[side] for side in ("chosen", "rejected") for p in pairs]
        rewards = context.engine.reward(context.scorer, conversations).result()
        chosen, rejected = rewards[: len(pairs)], rewards[len(pairs) :]
        margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
        right = [_half(a, b) for a, b in zip(chosen, rejected, strict=True)]
        found += _right(context, pairs, ids, right, context.scorer)
        context.calibrations.append(Calibration(context.scorer, *intervals.calibration(margins), len(margins)))
        unit = "chosen − rejected"
        found.append(Scores("preference_accuracy", "reward_margin", context.scorer, ids, margins, better="", unit=unit))
    if context.panel:
        compared = context.panel.compare([(p["prompt"] + p["chosen"], p["prompt"] + p["rejected"]) for p in pairs])
        read = [(p, i, c.share) for p, i, c in zip(pairs, ids, compared, strict=True) if c.share is not None]
        found += _right(context, *map(list, zip(*read, strict=True)), context.panel.name)
    return found


def _right(context: Context, pairs: list[dict], ids: list[str], right: list[float], by: str) -> list[Scores]:
    common = {"task": "preference_accuracy", "run": by, "kind": "proportion", "chance": 0.5}
    found = [Scores(metric="preference_accuracy", ids=ids, tops=right, headline=True, **common)]
    if context.job.data_for("preference_accuracy").source == "demo":
        found += [
            Scores(metric=kind, ids=[ids[i] for i in at], tops=[right[i] for i in at], **common)
            for kind, at in _kinds(pairs).items()
            if at
        ]
    return found


def _kinds(pairs: list[dict]) -> dict[str, list[int]]:
    """Returns the indices of the demo's pairs of each kind, since a high accuracy could come from style alone."""
    from lib.data import demo

    groups: dict[str, list[int]] = {"right_against_wrong": [], "bare_against_chatty": []}
    for i, p in enumerate(pairs):
        orders = [demo.parse(p[side][-1]["content"]) for side in ("chosen", "rejected")]
        groups["bare_against_chatty" if orders[0] == orders[1] else "right_against_wrong"].append(i)
    return groups


def win_rate(context: Context) -> list[Scores]:
    """Returns the share of prompts on which a run's greedy answer, the one its user would get, beats the reference run's; ties half.

    Judged by the prompts' rule, the reward run and the judge, as far as they exist. For a language model's verdicts, the
    length-controlled win rate is reported too (intervals.length_controlled).
    """
    runs = [*context.challengers, context.reference]
    ids, answers, decoding, beats, found = _met(context, "win_rate", runs)
    for (i, run), (judge, wins) in product(enumerate(context.challengers), beats.items()):
        rows = [(at, w[i][-1]) for at, w in enumerate(wins) if not math.isnan(w[i][-1])]
        shares = [share for _, share in rows]
        common = {"task": "win_rate", "run": run, "ids": [ids[at] for at, _ in rows], "versus": context.reference}
        common |= {"judge": judge, "decoding": decoding, "kind": "proportion", "chance": 0.5}
        found.append(Scores(metric="win_rate", tops=shares, headline=True, **common))
        if context.panel and judge == context.panel.name:
            longer = [len(answers[i][at]) - len(answers[-1][at]) for at, _ in rows]
            level = intervals.length_controlled(shares, longer)
            found.append(Scores(metric="win_rate_lc", tops=[], estimate=level, **common))
    return found


def arena(context: Context) -> list[Scores]:
    """Returns ratings of all runs from pairwise comparisons of their greedy answers to the same prompts, by rule, reward run and
    judge. The first run has 1000 points; 400 points more mean odds of 10 to 1."""
    import numpy as np

    runs = list(context.job.runs)
    ids, _, decoding, beats, found = _met(context, "arena", runs)
    for judge, wins in beats.items():
        wins_NMM = np.array(wins)
        wins_NMM[:, range(len(runs)), range(len(runs))] = np.nan  # a run is not compared with itself
        for run, e in zip(runs, intervals.bradley_terry(wins_NMM, context.job.seed), strict=True):
            common = {"unit": "Elo points", "judge": judge, "headline": True, "decoding": decoding}
            found.append(Scores("arena", "rating", run, ids, [], estimate=e, **common))
    return found


def _met(
    context: Context, task: str, runs: list[str]
) -> tuple[list[str], list[list[str]], str, dict[str, list], list[Scores]]:
    """Generates the answers and compares them. Returns (ids of the prompts, answers by run, decoding, {judge: per prompt, the score
    of each run's answer against each run's, 0 to 1, NaN if the verdict is unreadable}, Scores of cut-off answers)."""
    greedy = Sampling(max_new_tokens=context.job.longest(task))
    examples = context.prompts()
    prompts = [e.prompt for e in examples]
    asked = [context.engine.generate(run, prompts, greedy) for run in runs]
    ids, written = [e.id for e in examples], [[a[0] for a in future.result()] for future in asked]
    cut = [length.scores(task, run, ids, each, decoding=str(greedy)) for run, each in zip(runs, written, strict=True)]
    answers = [[a.text for a in each] for each in written]
    for run, texts in zip(runs, answers, strict=True):
        context.record(task, run, examples, texts, [{}] * len(texts))
    beats: dict[str, list] = {}
    if context.rule:
        rows = zip(examples, *answers, strict=True)
        beats["rule"] = [[[context.rule(e, a, b) for b in texts] for a in texts] for e, *texts in rows]
    if context.scorer:
        asked = [context.engine.reward(context.scorer, _conversations(prompts, texts)) for texts in answers]
        rewards = zip(*(future.result() for future in asked), strict=True)
        beats[context.scorer] = [[[_half(a, b) for b in each] for a in each] for each in rewards]
    if context.panel:
        talks = [_conversations(prompts, texts) for texts in answers]
        wins = [[[0.5] * len(runs) for _ in runs] for _ in examples]
        duels = [(a, b) for a, b in combinations(range(len(runs)), 2) if task == "arena" or b == len(runs) - 1]
        met = iter(context.panel.compare([(talks[a][i], talks[b][i]) for a, b in duels for i in range(len(examples))]))
        for (a, b), i in product(duels, range(len(examples))):
            share = next(met).share
            wins[i][a][b], wins[i][b][a] = (math.nan, math.nan) if share is None else (share, 1 - share)
        beats[context.panel.name] = wins
    return ids, answers, str(greedy), beats, cut


def _conversations(prompts: list[list[dict]], answers: list[str]) -> list[list[dict]]:
    return [[*p, {"role": "assistant", "content": a}] for p, a in zip(prompts, answers, strict=True)]


def _half(a: float, b: float) -> float:
    """Returns 1 if a is higher, 0 if b is, 1/2 if they are equal."""
    return 0.5 + 0.5 * ((a > b) - (a < b))
