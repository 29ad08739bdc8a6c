"""Answers prompts with a decoding method: the engine generates candidates and, for some methods, the reward run chooses.

best_of          the sample with the highest reward (Stiennon et al. 2020, https://arxiv.org/abs/2009.01325)
majority         the first sample with the most frequent final answer: self-consistency (Wang et al. 2022,
                 https://arxiv.org/abs/2203.11171), for tasks that read a final answer
reward_weighted  one of n samples, drawn with weight exp(r / β): for large n, a draw from π(y) exp(r(y) / β), the distribution that
                 maximises E[r] − β KL (soft best-of-n, Verdun et al. 2025, https://arxiv.org/abs/2505.03156)
reward_beam      beam search with W beams: each is extended by two samples of `chunk` tokens, and the W with the highest reward
                 of the text so far are kept (chunk-level beam search, Zhou et al. 2024, https://arxiv.org/abs/2405.19262)
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace

from lib.data import reasoning
from lib.evals.context import Context
from lib.generation.decoding import Decoding
from lib.generation.generator import Answer, Begun


@dataclass
class Found:
    answers: list[Answer]
    """One per prompt."""
    writing: list[Future] = field(default_factory=list)
    """Requests that generated text for the answers."""
    judging: list[Future] = field(default_factory=list)
    """Requests for the rewards of that text."""


Final = Callable[[str], str | None]
"""Returns the final answer in a text without reasoning; None if there is none."""


def cells(
    context: Context, task: str, prompts: list[list[dict]], final: Final | None = None
) -> Iterator[tuple[str, Decoding, Found]]:
    """Yields (run, decoding, result) for every run and decoding of a task; all are requested at once. final: the task's, by which
    samples vote."""
    wanted = [(run, how) for how in context.job.decodings(task) for run in context.job.runs]
    # Each thread waits for the engine. No `with`: if one fails, the caller closes the engine, which ends the others.
    pool = ThreadPoolExecutor(len(wanted))
    asked = [pool.submit(copy_context().run, find, context, run, prompts, how, final) for run, how in wanted]
    pool.shutdown(wait=False)
    for (run, how), future in zip(wanted, asked, strict=True):
        yield run, how, future.result()


def find(context: Context, run: str, prompts: list[list[dict]], how: Decoding, final: Final | None = None) -> Found:
    """Requests the answers of one run by one decoding and waits for them."""
    if how.head == "reward_beam":
        return _beam(context, run, prompts, how)
    asked = context.engine.generate(run, prompts, how.sampling)
    answers = asked.result()
    if how.head == "majority":
        assert final, "lib/evals/plan.py refuses tasks that read no final answer"
        return Found([each[vote([final(reasoning.answer(a.text)) for a in each])] for each in answers], [asked])
    if not how.by_reward:
        return Found([each[0] for each in answers], [asked])
    rewards, judged = _rewards(context, prompts, answers)
    pick = _likeliest if how.head == "best_of" else _weighted
    chosen = [each[pick(r, f"{p}", how)] for p, each, r in zip(prompts, answers, rewards, strict=True)]
    return Found(chosen, [asked], [judged])


def vote(finals: list[str | None]) -> int:
    """Returns the place of the first sample with the most frequent final answer.

    Samples without a final answer (None) don't vote. Of equally frequent answers the one that was drawn first wins; without any, the
    first sample.
    """
    counts = Counter(
        f for f in finals if f is not None
    )  # in the order of their first draws, and max takes the first of equal ones
    return finals.index(max(counts, key=lambda f: counts[f])) if counts else 0


def _likeliest(rewards: list[float], prompt: str, how: Decoding) -> int:
    """Returns the place of the highest reward; the first of equal ones."""
    return max(range(len(rewards)), key=lambda k: rewards[k])


def _weighted(rewards: list[float], prompt: str, how: Decoding) -> int:
    from scipy.special import softmax

    p = softmax([r / how.beta for r in rewards])
    return random.Random(f"{how.sampling.seed} {prompt}").choices(range(len(rewards)), p)[0]


def _beam(context: Context, run: str, prompts: list[list[dict]], how: Decoding) -> Found:
    width, left = how.sampling.n, how.sampling.max_new_tokens
    beams: list[list[Answer]] = [[Answer("", (), False)] for _ in prompts]
    rewards: list[list[float]] = [[0.0] for _ in prompts]
    writing, judging = [], []
    while left > 0 and any(not b.finished for each in beams for b in each):
        piece = min(how.chunk, left)
        left -= piece
        open_ = [(i, b) for i, each in enumerate(beams) for b in each if not b.finished]
        n = 2 if writing else 2 * width
        sampling = replace(how.sampling, n=n, max_new_tokens=piece)
        asked = context.engine.generate(run, [Begun(prompts[i], b.tokens) for i, b in open_], sampling)
        grown: list[list[Answer]] = [[b for b in each if b.finished] for each in beams]
        for (i, _), more in zip(open_, asked.result(), strict=True):
            grown[i] += more
        grown = [list({a.tokens: a for a in each}.values()) for each in grown]
        values, judged = _rewards(context, prompts, grown)
        for i, (each, r) in enumerate(zip(grown, values, strict=True)):
            best = sorted(range(len(each)), key=lambda k: -r[k])[:width]
            beams[i], rewards[i] = [each[k] for k in best], [r[k] for k in best]
        writing.append(asked)
        judging.append(judged)
    best = [each[_likeliest(r, "", how)] for each, r in zip(beams, rewards, strict=True)]
    return Found(best, writing, judging)


def _rewards(context: Context, prompts: list, answers: list[list[Answer]]) -> tuple[list[list[float]], Future]:
    """Returns (the reward of every answer to every prompt, the request)."""
    conversations = [
        [*p, {"role": "assistant", "content": a.text}] for p, each in zip(prompts, answers, strict=True) for a in each
    ]
    asked = context.engine.reward(context.scorer, conversations)
    values = iter(asked.result())
    return [[next(values) for _ in each] for each in answers], asked
