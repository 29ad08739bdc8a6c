"""Answers with reasoning are scored by what follows it, and their cost counts all that was generated."""

import pytest

from lib.evals.context import Context
from lib.evals.job import EvalJob
from lib.evals.measures import generation
from lib.evals.plan import plan
from lib.evals.tasks.demo_steps import DemoSteps
from lib.generation.generator import Answer
from tests.evals.test_search import done


class Engine:
    """Answers each prompt, by the total in its reference, in three ways: right after wrong reasoning, cut while reasoning, wrong."""

    gpu, count = False, 1

    def __init__(self, examples):
        self.right = {str(e.prompt): e.reference for e in examples}

    def generate(self, run, prompts, sampling):
        return done([[self._written(self.right[str(p)], k) for k in range(sampling.n)] for p in prompts])

    def _written(self, right, k):
        texts = f"<think>\n$1 > Mara @1\n</think>\n\n{right}", f"<think>\n{right}\n", "$1 > Mara @1", right
        return Answer(texts[k], (1,) * (10 + k), k != 1)

    def took(self, future):
        return 2.0, sum(len(a.tokens) for each in future.result() for a in each)


def test_what_follows_the_reasoning_is_scored():
    examples = DemoSteps().examples(2)
    job = EvalJob(
        runs={"cot": "x"}, tasks=["demo_steps"], decoding=["greedy", "majority_2,t=1", "majority_4,t=1"], limit=2
    )
    context = Context(job, Engine(examples), None, None)
    found = {(s.decoding, s.metric): s for s in generation.measure(DemoSteps(), context)}
    for how, written in (("greedy", 10), ("majority_2,t=1", 21), ("majority_4,t=1", 46)):
        assert found[how, "exact"].tops == [1.0, 1.0] and found[how, "written"].estimate.value == written
        assert found[how, "length"].tops == [10.0, 10.0] and found[how, "cut_off"].tops == [0.0, 0.0]
    answers = context.recorded["demo_steps"]["demo_steps-0", "greedy"]["answers"]
    assert answers["cot"].startswith("<think>")  # the report shows all of it
    engine = Engine(examples)
    engine._written = lambda right, k: Answer(f"<think>\n{right}\n", (1,), False)  # cut: nothing follows
    context = Context(job, engine, None, None)
    cut = {(s.decoding, s.metric): s.tops for s in generation.measure(DemoSteps(), context)}
    assert cut["greedy", "exact"] == [0.0, 0.0] and cut["greedy", "cut_off"] == [1.0, 1.0]


def test_tasks_without_a_final_answer_have_no_majority(tiny_model, tmp_path):
    job = EvalJob(str(tmp_path / "e"), {"a": tiny_model}, tasks=["demo", "ifeval"], decoding=["majority_4"])
    with pytest.raises(
        ValueError, match=r"majority_4 votes on final answers, which ifeval doesn't read. .*demo, demo_steps, gsm8k"
    ):
        plan(job)
    with pytest.raises(
        ValueError, match=r"data.reasoning: mask leaves reasoning out of training; perplexity would score it"
    ):
        masked = EvalJob(str(tmp_path / "e"), {"a": tiny_model}, tasks=["perplexity"])
        masked.data.reasoning, masked.data.source = "mask", "demo_steps"
        plan(masked)
