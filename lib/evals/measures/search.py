"""Answers prompts with a decoding method: the engine generates candidates and, for some methods, the reward run chooses.

best_of          the sample with the highest reward (Stiennon et al. 2020, https://arxiv.org/abs/2009.01325)
reward_weighted  one of n samples, drawn with weight exp(r / β): for large n, a draw from π(y) exp(r(y) / β), the distribution that
                 maximises E[r] − β KL (soft best-of-n, Verdun et al. 2025, https://arxiv.org/abs/2505.03156)
reward_beam      beam search with W beams: each is extended by two samples of `chunk` tokens, and the W with the highest reward
                 of the text so far are kept (chunk-level beam search, Zhou et al. 2024, https://arxiv.org/abs/2405.19262)
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace

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


def cells(context: Context, task: str, prompts: list[list[dict]]) -> Iterator[tuple[str, Decoding, Found]]:
    """Yields (run, decoding, result) for every run and decoding of a task; all are requested at once."""
    wanted = [(run, how) for how in context.job.decodings(task) for run in context.job.runs]
    # Each thread waits for the engine. No `with`: if one fails, the caller closes the engine, which ends the others.
    pool = ThreadPoolExecutor(len(wanted))
    asked = [pool.submit(copy_context().run, find, context, run, prompts, how) for run, how in wanted]
    pool.shutdown(wait=False)
    for (run, how), future in zip(wanted, asked, strict=True):
        yield run, how, future.result()


def find(context: Context, run: str, prompts: list[list[dict]], how: Decoding) -> Found:
    """Requests the answers of one run by one decoding and waits for them."""
    if how.head == "reward_beam":
        return _beam(context, run, prompts, how)
    asked = context.engine.generate(run, prompts, how.sampling)
    answers = asked.result()
    if not how.by_reward:
        return Found([each[0] for each in answers], [asked])
    rewards, judged = _rewards(context, prompts, answers)
    pick = _likeliest if how.head == "best_of" else _weighted
    chosen = [each[pick(r, f"{p}", how)] for p, each, r in zip(prompts, answers, rewards, strict=True)]
    return Found(chosen, [asked], [judged])


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
