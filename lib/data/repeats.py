"""Removes the prompt from text answers that begin with it, as a language model's raw output does.

    {"prompt": "What is red?", "chosen": "What is red? A colour.", "rejected": "What is red? No idea."}

From messages a repeated prompt is removed too (lib/data/formats.py). Of two answers both must repeat it: if only one does,
that may be why it is the worse one. A prompt of fewer than three words stays, because a greeting is often returned.
"""

from __future__ import annotations

import unicodedata

WORDS = 3
LETTERS = 8
"""Letters of a prompt that is long enough, in scripts without spaces between words."""
_ANSWERS = {
    "preference": ("prompt", ("chosen", "rejected")),
    "alpaca-preference": ("instruction", ("chosen", "rejected")),
    "labelled": ("prompt", ("completion",)),
    "prompt-completion": ("prompt", ("completion",)),
}


def without_prompt(format: str, row: dict) -> dict | None:
    """Returns the row with the prompt removed from its answers; None if they don't repeat it."""
    column, answers = _ANSWERS.get(format, ("", ()))
    prompt = row.get(column)
    if not isinstance(prompt, str):
        return None
    if column == "instruction" and isinstance(row.get("input"), str) and row["input"].strip():
        prompt = f"{prompt}\n{row['input']}"
    prompt = prompt.strip()
    rests = [_rest(prompt, row.get(answer)) for answer in answers]
    if not all(rests) or not _long(prompt):
        return None
    return row | dict(zip(answers, rests, strict=True))


def _rest(prompt: str, answer: object) -> str:
    """Returns the answer's text after the prompt; "" if it doesn't begin with the prompt as whole words, or nothing follows."""
    if not isinstance(answer, str) or not answer.lstrip().startswith(prompt):
        return ""
    rest = answer.lstrip()[len(prompt) :]
    return rest.strip() if rest[:1].isspace() or not prompt[-1:].isalnum() else ""


def _long(prompt: str) -> bool:
    return len(prompt.split()) >= WORDS or sum(unicodedata.category(c) == "Lo" for c in prompt) >= LETTERS
