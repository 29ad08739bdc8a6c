"""Decoding methods, each written as one string.

greedy                  the most probable token at each step
t=0.7,top_p=0.9         sampling; also top_k, min_p and repetition_penalty
greedy,draft=small      the same answers by speculative decoding, with the run `small` or `lookup` as the draft
                        (lib/generation/speculative.py); also draft_tokens
greedy,think=no         answers that begin with <think></think>, so that the model doesn't reason; goes with all methods
beam_4                  beam search with 4 beams
contrastive_base        contrastive decoding against the run `base` (lib/generation/sampling.py, contrast); also alpha, beta, t
best_of_8               the sample out of 8 with the highest reward; also best_of_8,t=0.7
majority_8              the first of 8 samples with the most frequent final answer, by the task's own reading of it; also t=0.7
                        (lib/evals/measures/search.py)
reward_weighted_8       one of 8 samples, drawn with probability proportional to exp(reward / beta)
reward_beam_4           beam search over chunks of `chunk` tokens, ranked by the reward run (lib/evals/measures/search.py)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lib.data.reasoning import NONE
from lib.generation.sampling import Sampling

KEYS = {
    "t": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", int),
    "min_p": ("min_p", float),
    "repetition_penalty": ("repetition_penalty", float),
    "draft": ("draft", str),
    "draft_tokens": ("draft_tokens", int),
}
HEADS = {
    "greedy": {},
    "beam": {},
    "contrastive": {"alpha": ("plausible", float), "beta": ("contrast", float)},
    "best_of": {},
    "majority": {},
    "reward_weighted": {"beta": ("beta", float)},
    "reward_beam": {"chunk": ("chunk", int)},
}
"""Method names, and the keys that only they accept."""
BY_REWARD = ("best_of", "reward_weighted", "reward_beam")
MANY = (*BY_REWARD, "majority")
"""Methods that choose among N samples."""
EXAMPLES = ("greedy", "beam_4", "contrastive_base", "best_of_8", "majority_8", "reward_weighted_8", "reward_beam_4")


@dataclass(frozen=True)
class Decoding:
    name: str
    """The string it was parsed from."""
    sampling: Sampling
    head: str = ""
    """The method without its number or run name; "" for plain sampling."""
    beta: float = 1.0
    """reward_weighted: temperature of the reward; near 0 it equals best_of, and for large values plain sampling."""
    chunk: int = 16
    """reward_beam: number of tokens generated between two rankings by reward."""

    @property
    def by_reward(self) -> bool:
        return self.head in BY_REWARD

    @property
    def written(self) -> int:
        """Number of answers' worth of tokens generated per final answer."""
        both = 2 if self.head in ("reward_beam", "contrastive") else 1  # two chunks per beam; two models per token
        return self.sampling.n * self.sampling.beams * both

    def __str__(self) -> str:
        more = {
            "best_of": "best of ",
            "majority": "majority of ",
            "reward_weighted": f"by exp(reward / {self.beta:g}) of ",
        }
        more["reward_beam"] = f"{self.sampling.n} beams by reward every {self.chunk} tokens of "
        return more.get(self.head, "") + str(self.sampling)


def parse(text: str, max_new_tokens: int, seed: int) -> Decoding:
    """Parses a decoding. Raises ValueError that names `decoding`, the part that can't be parsed, and the accepted forms."""
    words = [w.strip() for w in text.split(",")]
    named = re.fullmatch(
        r"(beam|best_of|majority|reward_weighted|reward_beam)_(\d+)|(contrastive)_(.+)|(greedy)", words[0]
    )
    head = next(g for g in named.groups()[::2] if g) if named else ""
    keys, settings, own = KEYS | HEADS.get(head, {}), {}, {}
    for word in words[1:] if named else words:
        key, _, value = word.partition("=")
        if key == "think":
            if value != "no":
                raise ValueError(
                    f"decoding: {text!r}: think=no leaves reasoning out. To let a model reason, leave it out."
                )
            settings["begins"] = NONE
            continue
        if key not in keys:
            from lib.errors import nearest

            raise ValueError(
                f"decoding: {text!r}: there is no {key!r}.{nearest(key, [*keys, 'think', *EXAMPLES])} "
                f"It is one of {', '.join(EXAMPLES)}, or settings such as t=0.7,top_p=0.9 ({', '.join(keys)}, think=no)."
            )
        name, kind = keys[key]
        try:
            (own if name in ("beta", "chunk") else settings)[name] = kind(value)
        except ValueError:
            raise ValueError(f"decoding: {text!r}: {key} is a number ({kind.__name__}), not {value!r}.") from None
    greedy = head in ("greedy", "beam") or (head == "contrastive" and "temperature" not in settings)
    if not greedy:
        settings.setdefault("temperature", 1.0)
    number = int(named[2]) if head in ("beam", *MANY) else 1
    sampling = Sampling(
        **settings,
        max_new_tokens=max_new_tokens,
        seed=0 if greedy else seed,
        n=number if head in MANY else 1,
        beams=number if head == "beam" else 1,
        amateur=named[4] if head == "contrastive" else None,
    )
    found = Decoding(text, sampling, head, **own)
    if problem := next(_problems(found, words), None):
        raise ValueError(f"decoding: {text!r}: {problem}")
    return found


def _problems(d: Decoding, words: list[str]):
    s = d.sampling
    if d.head == "greedy" and s.temperature:
        yield "greedy has no t; leave greedy out to sample."
    if not s.temperature >= 0 or (any(w.startswith("t=") for w in words) and s.temperature == 0):
        yield f"t must be above 0, is {s.temperature:g}. For the likeliest answer say greedy."
    if not 0 < s.top_p <= 1:
        yield f"top_p must be above 0 and at most 1, is {s.top_p:g}."
    if not 0 <= s.min_p < 1:
        yield f"min_p must be from 0 to below 1, is {s.min_p:g}."
    if s.top_k < 0:
        yield f"top_k must be 0 (all) or more, is {s.top_k}."
    if s.repetition_penalty <= 0:
        yield f"repetition_penalty must be above 0 (1: none), is {s.repetition_penalty:g}."
    if not 0 <= s.plausible <= 1:
        yield f"alpha must be from 0 to 1, is {s.plausible:g}."
    if not s.contrast >= 0:
        yield f"beta must be 0 or more, is {s.contrast:g}."
    if not d.beta > 0:
        yield f"beta must be above 0, is {d.beta:g}."
    if d.chunk < 1:
        yield f"chunk must be 1 token or more, is {d.chunk}."
    if d.head in MANY and s.n < 2:
        yield f"{d.head}_N needs 2 samples or more."
    if s.draft and (d.head in ("beam", "contrastive", "reward_beam") or s.repetition_penalty != 1):
        yield f"draft guesses what one distribution chooses, not {d.head or 'with repetition_penalty'}."
    if s.draft_tokens < 1:
        yield f"draft_tokens must be 1 or more, is {s.draft_tokens}."
    if any(w.startswith("draft") for w in words) and not s.draft:
        yield "say what drafts, and how many tokens: draft=RUN or draft=lookup, draft_tokens=4."
    if d.head == "beam" and s.beams < 2:
        yield "beam_N needs 2 beams or more."
    cut = [w for w in words if w.startswith(("top_p", "top_k", "min_p", "t="))]
    if cut and s.temperature == 0:
        yield f"{cut[0]} bends a distribution that {'beam search' if d.head == 'beam' else d.head} doesn't draw from."
