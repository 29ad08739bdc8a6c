"""What guesses tokens ahead of the served model (speculative decoding, lib/speculative.py): found and checked.

Answers are those without it, from fewer passes. Greedy ones are the very same in float32; in bfloat16, where a pass over several
tokens rounds otherwise than one over a single token, some turn at a near-tie, as lib/transformers_generator.py measured.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

METHODS = ("ngram", "suffix")
"""Drafts that are no model: what followed the same tokens before, in this conversation, or in any that was served."""
TOKENS = 4


@dataclass(frozen=True)
class Draft:
    method: str
    """ngram, suffix or draft_model, as vLLM calls them."""
    tokens: int
    """Guessed at a time."""
    base: str = ""
    """The model that drafts, as lib.models.locate returned it."""


def find(draft: str, tokens: int, target: str) -> Draft:
    """`draft` and `tokens` as serve/serving.py's keys say; target: the served model, as lib.models.locate returned it.

    Raises ValueError naming the key: no such run, not finished, a reward model, another vocabulary, or a missing package.
    """
    from lib.cli import nearest
    from lib.evals import spec
    from lib.run import Run

    if draft == "suffix" and not importlib.util.find_spec("arctic_inference"):
        raise ValueError("draft: suffix needs a package: pip install --no-deps arctic-inference==0.1.2")
    if draft in METHODS:
        return Draft(draft, tokens or TOKENS)
    if near := nearest(draft, METHODS):
        raise ValueError(f"draft: there is no {draft}.{near} Or a run that drafts.")
    base = spec.find("draft", "draft", draft, "auto").base
    run = Run(base)
    if _vocabulary(base) != _vocabulary(target):
        raise ValueError(
            f"draft: {draft} has another vocabulary than {target}, so its tokens are others. Take a model of the same "
            "family, or make one: python jobs/distill.py --config configs/distill.yaml"
        )
    return Draft("draft_model", tokens or _certified(run) or TOKENS, base)


def _certified(run) -> int | None:
    """The number that its certificate found best."""
    where = "reports/certificate.json"
    remedy = "Delete it, or say draft_tokens."
    return run.read_json(where, remedy).get("draft_tokens") if run.fs.exists(run.at(where)) else None


def _vocabulary(base: str) -> dict[str, int]:
    from transformers import AutoTokenizer

    from lib import models

    return AutoTokenizer.from_pretrained(models.path(base)).get_vocab()
