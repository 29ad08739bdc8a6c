"""Biased judges compared with a fair one: the warnings about their verdicts in the card, the tables and the terminal."""

import random

import pytest

from lib.evals.report import cautions, render, summary
from lib.evals.report.schema import Report
from lib.evals.task import Scores
from tests.evals import handwritten
from tests.evals.api import better, talk

N = 40


def answers(prompt: str) -> tuple[str, str]:
    """Returns (answer A, answer B) of one of our prompts."""
    a, b = prompt.index("[Assistant A]"), prompt.index("[Assistant B]")
    return prompt[a:b], prompt[b:]


def longer(prompt: str) -> str:
    a, b = answers(prompt)
    return "[[A]]" if a.count("x") > b.count("x") else "[[B]]"


def coin(prompt: str) -> str:
    return random.Random(prompt).choice(["[[A]]", "[[B]]"])


def conversations() -> list:
    """In two of three pairs the first run's answer is the good one, in the others the second's. In one of ten pairs the good answer is
    much longer; in the others it is alternately a bit shorter or longer."""
    out = []
    for i in range(N):
        good, bad = talk(f"q{i}", f"good {'x' * (i % 7)}"), talk(f"q{i}", f"poor {'x' * (6 - i % 7)}")
        out.append((good, bad) if i % 3 else (bad, good))
    return out


def judged(api, panel, say) -> Report:
    """Returns a report with one win rate, judged by `say`."""
    ours = panel(api(say).judge())
    shares = [(f"q{i}", p.share) for i, p in enumerate(ours.compare(conversations())) if p.share is not None]
    scores = [
        Scores(
            "win_rate", "win_rate", "dpo", [i for i, _ in shares], [s for _, s in shares], kind="proportion", versus="sft",
            judge=ours.name, headline=True, chance=0.5,
        ),
        *ours.honesty(),
    ]  # fmt: skip
    report = handwritten.report()
    report.metrics, report.comparisons = [summary.metric(s, 0) for s in scores], []
    report.verdicts = summary.verdicts(["sft", "dpo"], report.metrics, [], 0.65, 5.0)
    return report


@pytest.mark.parametrize(
    ("say", "words"),
    [
        (longer, ["Length: the longer answer wins in 100%"]),
        (lambda p: "[[B]]" if longer(p) == "[[A]]" else "[[A]]", ["Length: the shorter answer wins in 100%"]),
        (
            lambda p: "[[A]]",
            ["Only 0% [0–9] of verdicts stay the same", "the answer shown first wins 100%", "100% of pairs"],
        ),
        (
            lambda p: "[[B]]",
            ["Only 0% [0–9] of verdicts stay the same", "the answer shown second wins 100%", "100% of pairs"],
        ),
        (coin, ["of verdicts stay the same when the answers change places"]),
        (lambda p: "[[C]]", ["100% of pairs were left undecided"]),
        (lambda p: "?" if "q1" in p and "good" in answers(p)[0] else better(p), ["of verdicts could be read"]),
    ],
    ids=["longer", "shorter", "first", "second", "coin", "ties", "unreadable"],
)
@pytest.mark.slow
def test_a_judge_that_is_biased_gets_a_caution(say, words, api, panel, capsys):
    report = judged(api, panel, say)
    (v,) = report.verdicts
    assert len(v.cautions) >= len(words) and all(any(w in c for c in v.cautions) for w in words), v.cautions
    assert render.badge(v) == "caution"
    page, text = render.html(report), render.markdown(report)
    render.terminal(report, "somewhere")
    terminal = " ".join(capsys.readouterr().out.split())
    for c in v.cautions:
        assert c in page and f"caution: {c}" in text and c in terminal


def test_a_fair_judge_gets_none_and_its_agreement_stands_beside_the_score(api, panel):
    report = judged(api, panel, better)
    (v,) = report.verdicts
    assert v.cautions == [] and "the judge's two orders agree on 100% [91–100] of 40 pairs" in v.evidence
    rows = {r["label"]: r["main"] for r in render.table(report)}
    assert rows["judge: same verdict in both orders"] and rows["judge: the answer shown first won"]


def test_few_pairs_are_no_bias(api, panel):
    """The longer answer won both of two pairs, which happens by chance one time in four."""
    ours = panel(api(better).judge())
    ours.compare([(talk(f"q{i}", "good xx"), talk(f"q{i}", "poor")) for i in range(2)])
    assert cautions.cautions(ours.name, [summary.metric(s, 0) for s in ours.honesty()]) == []


def test_verdicts_of_a_rule_or_a_reward_run_have_no_cautions(api, panel):
    found = judged(api, panel, lambda p: "[[A]]").metrics
    assert (
        cautions.cautions("rule", found) == cautions.cautions(None, found) == [] == cautions.cautions("reward", found)
    )
