"""Decoding: how answers are taken from a model, as one word of a sweep.

greedy                  the likeliest token each time
t=0.7,top_p=0.9         sampling; also top_k, min_p and repetition_penalty
beam_4                  beam search with 4 beams
best_of_8               the one of 8 samples that the reward run likes best (Stiennon et al. 2020); also best_of_8,t=0.7
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lib.sampling import Sampling

KEYS = {
    "t": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", int),
    "min_p": ("min_p", float),
    "repetition_penalty": ("repetition_penalty", float),
}


@dataclass(frozen=True)
class Decoding:
    name: str
    """As it was asked for."""
    sampling: Sampling
    best_of: bool = False
    """Of the sampling.n answers, the one with the highest reward counts."""

    def __str__(self) -> str:
        return f"best of {self.sampling}" if self.best_of else str(self.sampling)


def parse(text: str, max_new_tokens: int, seed: int) -> Decoding:
    """Raises ValueError that names `decoding`, what can't be read in it, and what can."""
    settings: dict = {}
    best = re.fullmatch(r"best_of_(\d+)", (words := [w.strip() for w in text.split(",")])[0])
    beam = re.fullmatch(r"beam_(\d+)", words[0])
    if best or beam or words[0] == "greedy":
        words = words[1:]
    for word in words:
        key, _, value = word.partition("=")
        if key not in KEYS:
            from lib.cli import nearest

            raise ValueError(
                f"decoding: {text!r}: there is no {key!r}.{nearest(key, [*KEYS, 'greedy', 'beam_4', 'best_of_8'])} "
                f"It is greedy, beam_N, best_of_N, or settings such as t=0.7,top_p=0.9 ({', '.join(KEYS)})."
            )
        name, kind = KEYS[key]
        try:
            settings[name] = kind(value)
        except ValueError:
            raise ValueError(f"decoding: {text!r}: {key} is a number ({kind.__name__}), not {value!r}.") from None
    greedy = bool(beam) or text.strip().startswith("greedy")
    if not greedy:
        settings.setdefault("temperature", 1.0)
    sampling = Sampling(
        **settings,
        max_new_tokens=max_new_tokens,
        seed=0 if greedy else seed,
        n=int(best[1]) if best else 1,
        beams=int(beam[1]) if beam else 1,
    )
    problem = next((p for p in _problems(sampling, greedy, bool(best))), None)
    if beam and sampling.beams < 2:
        problem = "beam_N needs 2 beams or more."
    if beam and (cut := [w for w in words if not w.startswith("repetition_penalty")]):
        problem = f"{cut[0]} cuts a distribution that beam search doesn't draw from."
    if problem:
        raise ValueError(f"decoding: {text!r}: {problem}")
    return Decoding(text, sampling, bool(best))


def _problems(s: Sampling, greedy: bool, best: bool):
    if greedy and s.temperature:
        yield "greedy has no t; leave greedy out to sample."
    if not greedy and s.temperature <= 0:
        yield f"t must be above 0, is {s.temperature:g}. For the likeliest answer say greedy."
    if not 0 < s.top_p <= 1:
        yield f"top_p must be above 0 and at most 1, is {s.top_p:g}."
    if not 0 <= s.min_p < 1:
        yield f"min_p must be from 0 to below 1, is {s.min_p:g}."
    if s.top_k < 0:
        yield f"top_k must be 0 (all) or more, is {s.top_k}."
    if s.repetition_penalty <= 0:
        yield f"repetition_penalty must be above 0 (1: none), is {s.repetition_penalty:g}."
    if best and s.n < 2:
        yield "best_of_N needs 2 samples or more."
