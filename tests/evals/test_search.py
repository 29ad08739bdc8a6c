"""Answers chosen by a reward run, with an engine whose rewards and texts are known."""

from collections import Counter
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from lib.evals.measures import search
from lib.evals.tasks.gsm8k import Gsm8k
from lib.generation import decoding
from lib.generation.generator import Answer, Begun

PROMPTS = [[{"role": "user", "content": f"prompt {i}"}] for i in range(3)]


def done(value) -> Future:
    future = Future()
    future.set_result(value)
    return future


class Engine:
    """Continues draw k with the tokens 0, 1, 2, …; the reward of an answer is the sum of its tokens."""

    def __init__(self):
        self.asked, self.rated = [], 0

    def generate(self, run, prompts, sampling):
        self.asked.append((len(prompts), sampling.n, sampling.max_new_tokens))
        return done([[self._written(p, k, sampling) for k in range(sampling.n)] for p in prompts])

    def _written(self, prompt, k, sampling):
        begun = prompt.tokens if isinstance(prompt, Begun) else ()
        tokens = begun + (k,) * sampling.max_new_tokens
        return Answer(" ".join(map(str, tokens)), tokens, False, len(begun))

    def reward(self, scorer, conversations):
        self.rated += len(conversations)
        return done([float(sum(map(int, c[-1]["content"].split() or [0]))) for c in conversations])


def found(words: str, max_new_tokens=4):
    engine = Engine()
    how = decoding.parse(words, max_new_tokens, 0)
    return engine, search.find(SimpleNamespace(engine=engine, scorer="reward"), "sft", PROMPTS, how)


def test_best_of_takes_the_highest_reward():
    engine, got = found("best_of_3")
    assert [a.tokens for a in got.answers] == [(2, 2, 2, 2)] * 3 and engine.rated == 9


def test_reward_weighted_draws_by_the_reward():
    """With a small β it equals best-of, with a huge one all samples are equally likely; the same seed draws the same."""
    assert [a.tokens for a in found("reward_weighted_3,beta=0.01")[1].answers] == [(2,) * 4] * 3
    context = SimpleNamespace(engine=Engine(), scorer="reward")
    many = [[{"role": "user", "content": f"{i}"}] for i in range(600)]
    how = decoding.parse("reward_weighted_3,beta=1e9", 1, 0)
    counts = Counter(a.tokens for a in search.find(context, "sft", many, how).answers)
    assert all(abs(n - 200) < 4 * (600 * 2 / 9) ** 0.5 for n in counts.values()) and len(counts) == 3
    again = search.find(context, "sft", many, how).answers
    assert Counter(a.tokens for a in again) == counts


def test_reward_beam_keeps_the_best_beginnings():
    """2 beams: of 4 first pieces, draws 2 and 3 are kept; then each beam gets two pieces."""
    engine, got = found("reward_beam_2,chunk=2", 5)
    assert engine.asked == [(3, 4, 2), (6, 2, 2), (6, 2, 1)]
    assert [a.tokens for a in got.answers] == [(3, 3, 1, 1, 1)] * 3
    assert len(got.writing) == len(got.judging) == 3


@pytest.mark.parametrize(
    ("finals", "chosen"),
    [
        (["7", "8", "8", "7", "8"], 1),
        (["8", "7", "7", "8"], 0),  # a tie: the answer that was drawn first
        ([None, None, "7", None], 2),  # no final answer, no vote
        ([None, "7", "8"], 1),
        ([None, None], 0),
    ],
)
def test_the_most_frequent_final_answer_wins(finals, chosen):
    assert search.vote(finals) == chosen


def test_majority_votes_on_final_answers_after_the_reasoning():
    """Hand-written samples: 9 is the most frequent number, but stands in reasoning only, most of which was cut off."""
    texts = ["<think>\n8\n</think>\n\n7", "<think>\n9", "<think>\n9\n9", "<think>9 is it", "so 9</think> 7"]
    samples = [[Answer(t, tuple(range(len(t))), True) for t in texts]] * 3
    engine = SimpleNamespace(generate=lambda *asked: done(samples))
    how = decoding.parse("majority_5,t=0.7", 9, 0)
    got = search.find(SimpleNamespace(engine=engine, scorer=None), "cot", PROMPTS, how, Gsm8k().final)
    assert [a.text for a in got.answers] == [texts[0]] * 3 and len(got.writing) == 1


@pytest.mark.parametrize("head", ["best_of_3", "reward_beam_2,chunk=3"])
def test_an_empty_list_of_prompts(head):
    how = decoding.parse(head, 4, 0)
    assert search.find(SimpleNamespace(engine=Engine(), scorer="r"), "sft", [], how).answers == []
