"""Which side of the train/held-out split a prompt is on, and when two prompts are the same."""

from __future__ import annotations

import hashlib
import re
import unicodedata

# Marks that end or quote a phrase. Operators (+ - * / % =) and points inside numbers stay: "3 - 2" is not "3 / 2".
_QUOTES = re.compile("['\"`‘’“”«»]")
_MARKS = re.compile(r"[!?;()\[\]{}…。、¿¡]|(?<!\d)[.,:]|[.,:](?!\d)")

# A shorter text is a heading or a name, which a book and its test chapters may well share.
LEAK_WORDS = 8


def normalise(prompt: str) -> str:
    """The prompt without case, spacing and punctuation; if nothing is left, the prompt itself."""
    folded = unicodedata.normalize("NFKC", prompt).casefold()
    return " ".join(_MARKS.sub(" ", _QUOTES.sub("", folded)).split()) or prompt.strip()


def digest(prompt: str) -> bytes:
    """16 bytes that are the same for prompts that are the same once normalised."""
    return hashlib.blake2b(normalise(prompt).encode("utf-8", "replace"), digest_size=16).digest()


def is_heldout(key: bytes, fraction: float) -> bool:
    """True for about `fraction` of all digests; never depends on the other rows, their order or the machine."""
    return int.from_bytes(key[:8], "big") < fraction * 2**64
