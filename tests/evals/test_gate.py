"""The release gate on a report with known numbers."""

import pytest

from lib.evals.report import gate
from lib.evals.report.gate import Rule
from tests.evals import handwritten


@pytest.fixture(scope="module")
def report():
    return handwritten.report()


def value(report, run: str) -> float:
    return next(m.value for m in report.metrics if (m.task, m.metric, m.run) == ("demo", "exact", run))


def test_bars(report):
    sft = value(report, "sft")
    rules = [
        Rule("demo.exact", "sft", at_least=sft),
        Rule("demo.exact", "sft", at_least=sft + 0.01),
        Rule("demo", "sft", at_most=sft),
        Rule("kl", "dpo", at_most=0.0),
    ]
    found = gate.judge(rules, report)
    assert [v.holds for v in found] == [True, False, True, False]
    assert found[1].claim.startswith("gate: demo.exact of sft ≥ ") and "n=200" in found[1].evidence


def test_a_regression_shuts_the_gate_and_noise_does_not(report):
    rules = [
        Rule("demo.exact", "base", not_worse_than="sft"),  # 3% against 71%
        Rule("demo.exact", "sft", not_worse_than="base"),
        Rule("demo.exact", "sft", not_worse_than="dpo"),  # a few points lower, by chance
        Rule("perplexity", "base", not_worse_than="sft"),  # higher is worse here
    ]
    assert [v.holds for v in gate.judge(rules, report)] == [False, True, True, False]


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (Rule("dmeo.exact", "sft", at_least=1), r"gate\[0\].metric: dmeo.exact: dmeo is not one of tasks.*demo"),
        (
            Rule("demo.exat", "sft", at_least=1),
            r"gate\[0\].metric: demo has no exat. Nearest: exact. It has exact, slots",
        ),
        (Rule("demo", "stf", at_least=1), r"gate\[0\]: stf is not one of runs.*sft"),
        (Rule("demo", "sft"), "exactly one"),
        (Rule("demo", "sft", at_least=1, at_most=2), "exactly one"),
        (Rule("demo", "sft", not_worse_than="bsae"), "bsae is not one of runs"),
        (Rule("demo", "sft", at_least=1, decoding="gredy"), r"gate\[0\].decoding: gredy .*greedy"),
    ],
)
def test_rules_that_are_wrong(rule, says):
    import re

    (problem,) = gate.problems([rule], {"demo": ["exact", "slots"]}, ["base", "sft"], ["greedy"])
    assert re.search(says, problem)


def test_a_metric_that_was_not_measured(report):
    with pytest.raises(ValueError, match=r"gate: demo.exat: demo has no metric exat.*exact"):
        gate.judge([Rule("demo.exat", "sft", at_least=0)], report)
