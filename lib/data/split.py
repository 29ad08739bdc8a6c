"""Assigns prompts to the train/held-out split, and defines when two prompts are the same."""

from __future__ import annotations

import hashlib
import re
import unicodedata

# Punctuation that ends or quotes a phrase. Operators (+ - * / % =) and points inside numbers stay: "3 - 2" isn't "3 / 2".
_QUOTES = re.compile("['\"`‘’“”«»]")
_MARKS = re.compile(r"[!?;()\[\]{}…。、¿¡]|(?<!\d)[.,:]|[.,:](?!\d)")

# Shorter plain texts don't count as leaks: a book and its test chapters may share a heading or a name.
LEAK_WORDS = 8


def normalise(prompt: str) -> str:
    """Returns the prompt case-folded, with single spaces and without punctuation; if nothing is left, the prompt itself."""
    folded = unicodedata.normalize("NFKC", prompt).casefold()
    return " ".join(_MARKS.sub(" ", _QUOTES.sub("", folded)).split()) or prompt.strip()


def digest(prompt: str) -> bytes:
    """Returns a 16-byte hash of the normalised prompt."""
    return hashlib.blake2b(normalise(prompt).encode("utf-8", "replace"), digest_size=16).digest()


def is_heldout(key: bytes, fraction: float) -> bool:
    """True for about `fraction` of all digests, independently of the other rows, their order and the machine."""
    return int.from_bytes(key[:8], "big") < fraction * 2**64


def half(key: bytes) -> str:
    """Returns "first" or "second", independently of is_heldout(key)."""
    return "second" if key[8] & 1 else "first"
