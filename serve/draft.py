"""Finds and checks the draft that proposes tokens for the served model (speculative decoding, lib/generation/speculative.py).

A draft saves passes without changing the distribution of answers. In float32, greedy answers are identical; in bfloat16, a pass over
several tokens rounds differently from a pass over one, which changes some answers at near-ties (lib/generation/transformers_generator.py has
measurements).
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

METHODS = ("ngram", "suffix")
"""Drafts that need no model: they propose what followed the same tokens earlier, in this conversation (ngram) or in any served
one (suffix)."""
TOKENS = 4


@dataclass(frozen=True)
class Draft:
    method: str
    """ngram, suffix or draft_model, vLLM's names."""
    tokens: int
    """Tokens proposed at a time."""
    base: str = ""
    """The draft model, as returned by lib.models.locate.locate."""


def find(draft: str, tokens: int, target: str) -> Draft:
    """Returns the draft. draft, tokens: the keys `draft` and `draft_tokens` of serve/serving.py; target: the served model, as returned
    by lib.models.locate.locate.

    Raises ValueError naming the key: no such run, unfinished, a reward model, a different vocabulary, or a missing package.
    """
    from lib.errors import nearest
    from lib.generation import model_spec
    from lib.run import Run

    if draft == "suffix" and not importlib.util.find_spec("arctic_inference"):
        raise ValueError("draft: suffix needs a package: pip install --no-deps arctic-inference==0.1.2")
    if draft in METHODS:
        return Draft(draft, tokens or TOKENS)
    if near := nearest(draft, METHODS):
        raise ValueError(f"draft: there is no {draft}.{near} Or name a run that drafts.")
    base = model_spec.find("draft", "draft", draft, "auto").base
    run = Run(base)
    if _vocabulary(base) != _vocabulary(target):
        raise ValueError(
            f"draft: {draft} has another vocabulary than {target}. Use a model of the same family, or distil one: "
            "python jobs/distill.py --config configs/distill.yaml"
        )
    return Draft("draft_model", tokens or _certified(run) or TOKENS, base)


def _certified(run) -> int | None:
    """Returns the best number of tokens according to the run's certificate, or None."""
    where = "reports/certificate.json"
    remedy = "Delete it, or set draft_tokens."
    return run.read_json(where, remedy).get("draft_tokens") if run.fs.exists(run.at(where)) else None


def _vocabulary(base: str) -> dict[str, int]:
    from transformers import AutoTokenizer

    from lib.models import locate

    return AutoTokenizer.from_pretrained(locate.path(base)).get_vocab()
