"""Turns scores per example into values with intervals, paired comparisons of runs, and verdicts in words."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from itertools import combinations, pairwise

from lib.evals.report import cautions
from lib.evals.report.formatting import percent, show, signed, size, value
from lib.evals.report.length import METRIC
from lib.evals.report.schema import Comparison, Metric, Verdict
from lib.evals.statistics import intervals, paired_ranks
from lib.evals.statistics.intervals import Estimate
from lib.evals.task import Measured, Scores

LABELS = {
    "win_rate": "win rate",
    "win_rate_lc": "length-controlled win rate",
    "orders_agree": "same verdict in both orders",
    "first_won": "the answer shown first won",
    "longer_won": "the longer answer won",
    "readable": "verdicts that could be read",
    "rule_agrees": "answers on which the rule says the same",
    "called_refusal": "answers taken for refusals",
    "missed": "refusals taken for answers",
    "kl": "KL from the reference",
    "preference_accuracy": "preference pairs right",
    "bits_per_byte": "bits per byte",
    "pseudo_perplexity": "pseudo-perplexity",
    "denoising_loss": "loss on masked spans, nats per token",
    "replaced_f1": "replaced tokens found, F1",
    "next_segment": "segments told apart",
    "spearman": "Spearman correlation",
    "mrr": "MRR",
    "ndcg@10": "nDCG@10",
    "length": "length in tokens",
    "written": "tokens generated, of all samples",
    "cut_off": "answers cut off at their longest",
    "distinct_1": "different words",
    "macro_f1": "macro-F1",
    "distinct_2": "different pairs of words",
    "self_bleu": "Self-BLEU",
    "seconds_per_answer": "seconds per answer",
    "tokens_per_second": "tokens per second",
    "usd_per_1000": "$ per 1,000 answers",
    "reward_margin": "reward margin",
    "right_against_wrong": "  right against wrong",
    "bare_against_chatty": "  bare against chatty",
}

CLOCK = ("seconds_per_answer", "tokens_per_second", "usd_per_1000")
"""Metrics that depend on the machine and so vary between evaluations."""


def metric(scores: Scores, seed: int) -> Metric:
    """Returns the value of `scores` with its 95% interval. Raises ValueError if a score isn't a finite number."""
    try:
        e = scores.estimate or _estimate(scores, seed)
    except ValueError as why:
        raise ValueError(f"{scores.task}, {scores.metric} of {scores.run}: {why}") from None
    measured = {f.name: getattr(scores, f.name) for f in fields(Measured)}
    return Metric(**measured, value=e.value, low=e.low, high=e.high, n=e.n, method=e.method)


def _estimate(scores: Scores, seed: int) -> Estimate:
    if scores.kind == "proportion":
        return intervals.proportion(scores.tops, scores.groups)
    if scores.kind == "spearman":
        return intervals.spearman(scores.tops, scores.bottoms or [])
    e = intervals.bootstrap_ratio(*_together(scores), seed)
    if scores.groups:
        e = replace(e, n=len(scores.tops), method=e.method if e.low is None else f"{e.method} over {e.n} groups")
    if scores.kind == "perplexity":  # exp is monotone, so it also maps the interval of nats per token
        ends = (None if x is None else math.exp(min(x, 700)) for x in (e.value, e.low, e.high))
        return Estimate(*ends, e.n, e.method)
    return e


def _together(scores: Scores) -> tuple[list[float], list[float]]:
    """Returns (tops, bottoms), summed over each group if the scores have groups."""
    tops, bottoms = scores.tops, scores.bottoms or [1.0] * len(scores.tops)
    if not scores.groups:
        return tops, bottoms
    sums: dict[str, list[float]] = {}
    for g, t, b in zip(scores.groups, tops, bottoms, strict=True):
        both = sums.setdefault(g, [0.0, 0.0])
        both[0], both[1] = both[0] + t, both[1] + b
    return [t for t, _ in sums.values()], [b for _, b in sums.values()]


def comparisons(all_scores: list[Scores], seed: int) -> list[Comparison]:
    """Compares every two runs that have the same metric on the same examples; ordered by metric, then by run."""
    found = []
    places = {key: i for i, key in enumerate(dict.fromkeys((s.task, s.metric) for s in all_scores))}
    ordered = sorted(all_scores, key=lambda s: places[s.task, s.metric])
    for a, b in combinations(ordered, 2):
        alike = (a.task, a.metric, a.judge, a.decoding) == (b.task, b.metric, b.judge, b.decoding)
        if not alike or a.run == b.run or a.versus or b.versus or a.estimate or a.ids != b.ids or a.metric == METRIC:
            continue
        log = a.kind == "perplexity"
        e, p = _paired(a, b, seed)
        found.append(
            Comparison(
                task=a.task,
                metric=a.metric,
                a=a.run,
                b=b.run,
                difference=e.value,
                low=e.low,
                high=e.high,
                n=e.n,
                method=e.method,
                p=p,
                better=a.better,
                kind="mean" if log else a.kind,
                unit="nats per token" if log else a.unit,
                decoding=a.decoding,
                judge=a.judge,
                detectable=intervals.detectable(e),
            )
        )
    for c, corrected in zip(found, intervals.holm([c.p for c in found]), strict=True):
        c.p_holm = corrected
    return sorted(found, key=lambda c: places[c.task, c.metric])


def _paired(a: Scores, b: Scores, seed: int) -> tuple[Estimate, float]:
    """Returns (the difference b − a with its interval, the p-value of no difference)."""
    if a.kind == "spearman":
        return paired_ranks.difference(a.tops, b.tops, a.bottoms or [], seed)
    sides = _together(a), _together(b)
    if a.kind == b.kind == "proportion":
        e = intervals.paired_proportions(a.tops, b.tops, a.groups)
    else:
        e = replace(intervals.paired_difference(*sides, seed), n=len(a.tops))
    binary = a.kind == "proportion" and not a.groups and set(a.tops) | set(b.tops) <= {0.0, 1.0}
    return e, intervals.mcnemar(a.tops, b.tops) if binary else intervals.sign_flips(*sides, seed)


def verdicts(
    runs: list[str], metrics: list[Metric], compared: list[Comparison], floor: float, ceiling: float
) -> list[Verdict]:
    """Returns the verdicts: every run against the one before it on the headline metrics, then the thresholds.

    floor: share of pairs that a reward run should order correctly; ceiling: limit on the KL divergence, in nats per answer.
    """
    found = []
    for a, b in pairwise(runs):
        for c in compared:
            of = ("task", "metric", "decoding", "judge")
            both = [
                m for m in metrics if m.headline and all(getattr(m, k) == getattr(c, k) for k in of) and m.run in (a, b)
            ]
            if (c.a, c.b) == (a, b) and len(both) == 2:
                found.append(_above(*sorted(both, key=lambda m: m.run != a), c))
    for m in metrics:
        of_two, judge = False, m.judge
        if m.metric == "preference_accuracy":
            judge = m.run
            claim = f"{m.run} tells preferred from rejected answers more than {percent(floor)} of the time"
            holds, what = _beyond(m, floor), "right on held-out pairs"
        elif m.metric == "win_rate":
            of_two = True
            by = {"rule": "the stated rule", "reward": "the reward model"}.get(m.judge, m.judge)
            where = "" if m.task == "win_rate" else f" on {m.task}"
            claim, holds = f"{m.run} is preferred over {m.versus} by {by}{where}", _beyond(m, 0.5)
            half = "the interval includes 50%" if holds is None else "the interval excludes 50%"
            what = f"wins on held-out prompts, ties counted half: {half}"
        elif m.metric == "kl":
            outside = _beyond(m, ceiling)
            claim = f"{m.run} stays within {ceiling:g} nats of {m.versus}"
            holds, what = None if outside is None else not outside, f"mean KL({m.run}‖{m.versus}) per answer"
        else:
            continue
        figure = f"{value(m)} nats" if m.metric == "kl" else value(m)
        evidence = f"{show(m)}, n={m.n}: {what}{cautions.agreement(judge, metrics)}"
        found.append(Verdict(claim, holds, figure, evidence, m.n, of_two, cautions.cautions(judge, metrics)))
    return found


def _above(a: Metric, b: Metric, c: Comparison) -> Verdict:
    """Returns whether run b is better than run a on their headline metric, judged by the paired difference."""
    estimates = [Estimate(m.value, m.low, m.high, m.n, m.method) for m in (a, b)]
    sign = 1 if a.better == "higher" else -1
    holds = None
    excludes = c.low is None or c.high is None or not c.low <= 0 <= c.high  # without an interval, p alone decides
    if excludes and c.p_holm < 0.05:
        holds = c.difference * sign > 0
    if holds is not None and intervals.apart(*estimates):
        how = "intervals apart"
    elif holds is not None and None not in (a.low, b.low, c.low):
        how = f"paired difference {signed(c)}, though the intervals overlap"
    else:
        how = f"paired difference {signed(c)}"
    p = f", p {'< 0.001' if c.p_holm < 0.001 else f'= {c.p_holm:.3f}'} (Holm)"
    if holds is None and c.detectable is not None:
        p += f"; {c.n} examples show differences of {size(c)} and more"
    what = f"{b.task}" if b.metric in (b.task, "perplexity") else f"{b.task}, {b.metric}"
    what += f" ({b.decoding})" if b.decoding not in ("", "greedy") else ""
    what += f", as {b.judge} judges" if b.judge else ""
    claim = f"{b.run} and {a.run} are not told apart on {what}"
    if holds is not None:
        claim = f"{b.run} is {'above' if holds == (sign > 0) else 'below'} {a.run} on {what}"
    evidence = f"{show(a)} → {show(b)}, n={c.n}: {how}{p}"
    return Verdict(claim, holds, f"{value(a)} → {value(b)}", evidence, c.n, compares=True)


def _beyond(m: Metric, bar: float) -> bool | None:
    """Returns True if the whole interval is above the bar, False if all of it is below, None if it includes the bar."""
    if m.low is None or m.high is None or m.low <= bar <= m.high:
        return None
    return m.low > bar


def label(m: Metric | Comparison) -> str:
    """Returns the name of a metric in tables: "demo: exact", "win rate over sft, judge: rule"."""
    name = LABELS.get(m.metric, m.metric)
    if m.metric in ("win_rate", "win_rate_lc"):
        return f"{'' if m.task == 'win_rate' else m.task + ': '}{name} over {m.versus}, judge: {m.judge}"
    if m.metric == "rating":
        return f"rating, judge: {m.judge}"
    if m.metric == "kl":
        return f"KL from {m.versus}"
    if m.task in (m.metric, "perplexity", "preference_accuracy"):
        return name
    by = f", judge: {m.judge}" if m.judge and m.task not in ("judge", "refusal_labels") else ""
    return f"{m.task}: {name}" + (f" ({m.decoding})" if m.decoding not in ("", "greedy") else "") + by
