"""Shows a row as the model will see it, for a human reader."""

from __future__ import annotations

from lib.rendering.sequences import Sequence, Settings

LONGEST = 700  # characters shown of each part

OPEN, CLOSE = "⟦", "⟧"
"""Mark the tokens that are learnt."""


def fits(s: Sequence, settings: Settings) -> bool:
    """Returns whether the sequence is within max_length."""
    return settings.max_length is None or len(s.ids) <= settings.max_length


def shown(tokenizer, kind: str, place: str, found: list[Sequence], settings: Settings) -> list[tuple[str, str]]:
    """Returns lines (label, text) for the last answer of a conversation, both sides of a pair, or a text."""
    marked = f"the part between {OPEN} and {CLOSE} is learnt" if not settings.scores else "the whole row is scored"
    if settings.embeds:
        titles = ["text"] if kind == "text" else ["anchor", "positive", *["negative"] * (len(found) - 2)]
        texts = [(title, _marked(tokenizer, s, settings)) for title, s in zip(titles, found, strict=True)]
        return [("a row", f"{place}, as the model sees it; each text gets a vector"), *texts]
    if settings.classifies:
        text = _marked(tokenizer, found[0], settings)
        return [("a row", f"{place}, as the model sees it; its label isn't shown"), ("", text)]
    if settings.answers:
        marked = "the model answers it"
    if settings.objective not in (None, "clm"):
        marked = f"what is learnt is drawn in each epoch (train.objective: {settings.objective})"
    if kind == "labelled":  # an unwanted answer is made less likely
        marked = f"the loss is computed on the part between {OPEN} and {CLOSE}"
    if kind != "preference":
        return [("a row", f"{place}, as the model sees it; {marked}"), ("", _marked(tokenizer, found[-1], settings))]
    sides = [_marked(tokenizer, s, settings, whole=n == 0 or settings.scores) for n, s in enumerate(found)]
    return [("a row", f"{place}, as the model sees it; {marked}"), ("chosen", sides[0]), ("rejected", sides[1])]


def _marked(tokenizer, s: Sequence, settings: Settings, whole: bool = True) -> str:
    kept, learnt = settings.cut(s.ids), settings.learnt(s)
    at = len(kept) - learnt
    before, after = _shortened(tokenizer.decode(kept[:at])), _shortened(tokenizer.decode(kept[at:]))
    return (before if whole else "… ") + (f"{OPEN}{after}{CLOSE}" if learnt else "")


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]} … {len(text) - 2 * half:,} characters … {text[-half:]}"
