"""Measures of models that don't generate text, on held-out texts: what they predict for masked, replaced or missing tokens.

lib/generation/denoiser.py has the definitions. Values depend on the tokenizer, except next_segment's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lib.evals.context import Context
from lib.evals.task import Scores
from lib.models.masking import generator

STATISTICS: dict[str, dict] = {
    "pseudo_perplexity": {"kind": "perplexity", "better": "lower", "unit": "per token"},
    "denoising_loss": {"kind": "ratio", "better": "lower", "unit": "nats per masked token"},
    "replaced_f1": {"kind": "ratio", "better": "higher"},
    "next_segment": {"kind": "proportion", "better": "higher", "chance": 0.5},
}
"""{measure: fields of its Scores}"""

KINDS = {
    "pseudo_perplexity": "masked_lm",
    "denoising_loss": "seq2seq_lm",
    "replaced_f1": "discriminator",
    "next_segment": "masked_lm",
}
"""{measure: kind of model that it measures}"""


def measure(name: str, context: Context) -> list[Scores]:
    """Returns the scores of each run on the held-out texts."""
    texts = [row["text"] for row in context.rows(name)]
    follows, seconds = [True] * len(texts), [None] * len(texts)
    if name == "next_segment":
        texts, seconds, follows = pairs(texts)
    asked = {run: context.engine.denoise(run, name, texts, seconds) for run in context.job.runs}
    found = []
    for run, future in asked.items():
        tops, bottoms = (list(column) for column in zip(*future.result(), strict=True))
        if name == "next_segment":
            tops = [float(bool(top) == right) for top, right in zip(tops, follows, strict=True)]
        ids = [f"row-{i}" for i in range(len(texts))]
        more = {} if name == "next_segment" else {"bottoms": bottoms}
        found.append(Scores(name, name, run, ids, tops, headline=True, **STATISTICS[name], **more))
    return found


def pairs(texts: list[str]) -> tuple[list[str], list[str], list[bool]]:
    """Returns (first halves, second halves, whether both are of the same text) of texts with two words or more. A hash of the text decides
    whether its second half is replaced by that of the next text."""
    halves = []
    for text in texts:
        words = text.split(" ")
        if len(words) > 1:
            halves.append((" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])))
    if len(halves) < 2:
        raise ValueError("tasks: next_segment needs two held-out texts or more, each of two words or more.")
    follows = [generator(first + second).random() < 0.5 for first, second in halves]
    own = zip(halves, halves[1:] + halves[:1], follows, strict=True)
    return [first for first, _ in halves], [half[1] if same else other[1] for half, other, same in own], follows


MEASURES: dict[str, Callable[[Context], list[Scores]]] = {name: partial(measure, name) for name in STATISTICS}
