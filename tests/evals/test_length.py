"""Truncated answers: counted, warned about, and rejected if the model has no room for them."""

import pytest

from lib.evals.job import EvalJob
from lib.evals.plan import plan
from lib.evals.report import length, summary
from lib.generation.generator import Answer


def test_answers_that_were_cut_off_are_counted_and_warned_of():
    answers = [Answer("the red", (5, 6), False)] * 2 + [Answer("lamp", (7, 2), True)] * 30
    few = length.scores("demo", "sft", [f"{i}" for i in range(32)], answers, decoding="greedy")
    assert few.tops == [1.0, 1.0] + [0.0] * 30
    many = length.scores("demo", "dpo", ["a", "b", "c"], answers[1:4], decoding="t=1")
    metrics = [summary.metric(s, 0) for s in (few, many)]
    assert length.warnings(metrics) == [
        "6.3% of sft's 32 answers to demo were cut off at their longest: scores may be too low for that reason. Raise max_new_tokens.",
        "33.3% of dpo's 3 answers to demo (t=1) were cut off at their longest: scores may be too low for that reason. Raise max_new_tokens.",
    ]
    assert length.warnings([summary.metric(length.scores("demo", "sft", ["a"], answers[-1:]), 0)]) == []
    assert summary.comparisons([few, length.scores("demo", "dpo", few.ids, answers, decoding="greedy")], 0) == []


def test_each_task_has_a_length_of_its_own_unless_one_is_set(tiny_model):
    job = EvalJob(runs={"a": "x"})
    assert job.longest("gsm8k") == 512 and job.longest("gsm8k_direct") == 64
    assert job.longest("win_rate") == job.longest("demo")  # on the demo data, which has these prompts
    assert [d.sampling.max_new_tokens for d in job.decodings("ifeval")] == [1024]
    assert EvalJob(runs={"a": "x", "b": tiny_model}).longest("ifeval") == 256  # half of the tiny model's window
    assert EvalJob(runs={"a": "x"}, max_new_tokens=7).longest("gsm8k") == 7


def test_answers_as_long_as_the_window_are_refused(tiny_model):
    plan(EvalJob(runs={"tiny": tiny_model}, max_new_tokens=500))
    with pytest.raises(
        ValueError, match=r"^max_new_tokens: 512 for demo leaves no room .* runs.tiny .* reads 512 tokens"
    ):
        plan(EvalJob(runs={"tiny": tiny_model}, max_new_tokens=512))
