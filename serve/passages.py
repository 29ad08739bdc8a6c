"""Documents as passages: Markdown or plain text, cut at headings, paragraphs and sentences so that an encoder can read each whole."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

NAMED = 2
"""Headings above a passage that are embedded with it: the innermost ones."""
SHORTEST = 32
"""Fewest tokens that a passage may be limited to."""


@dataclass(frozen=True)
class Passage:
    file: str
    line: int
    """Of its first line, from 1."""
    headings: tuple[str, ...]
    """The headings above it, outermost first."""
    text: str

    @property
    def embedded(self) -> str:
        """What an encoder reads: without its headings, a passage such as a list of keys doesn't say what it is about."""
        return "\n".join([*self.headings[-NAMED:], self.text])


def split(files: list[str], tokenizer: Any, most: int) -> list[Passage]:
    """Returns the passages of UTF-8 files; each has at most `most` tokens together with its headings.

    tokenizer: the encoder's, of transformers. Raises ValueError, naming --documents, for a file that can't be read or has no text.
    """
    from semantic_text_splitter import MarkdownSplitter

    def size(text: str) -> int:
        return len(tokenizer(text, truncation=False, verbose=False)["input_ids"])

    found = []
    for file in files:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            why = "is not UTF-8 text" if isinstance(e, UnicodeDecodeError) else f"can't be read: {e.strerror}"
            raise ValueError(f"--documents: {file} {why}. Give Markdown or plain text.") from None
        before = len(found)
        for at, end, above in sections(text):
            room = most - size("\n".join([*above[-NAMED:], ""]))
            if room < SHORTEST:
                line = text.count("\n", 0, at)
                raise ValueError(
                    f"--documents: {file}:{line} has headings that leave no room for text. Raise --tokens."
                )
            splitter = MarkdownSplitter.from_callback(size, room)
            for offset, piece in splitter.chunk_indices(text[at:end]):
                line = text.count("\n", 0, at + offset) + 1
                found.append(Passage(file, line, above, piece))
        if len(found) == before:
            raise ValueError(f"--documents: {file} has no text. Leave it out.")
    return found


def sections(text: str) -> list[tuple[int, int, tuple[str, ...]]]:
    """Returns (start, end, the headings above) of each part of a Markdown text between two headings, in characters."""
    from markdown_it import MarkdownIt

    at = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
    tokens = MarkdownIt().parse(text)
    found: list[tuple[int, int, tuple[str, ...]]] = []
    above: list[tuple[int, str]] = []
    start = 0
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open" and opening.level == 0 and opening.map:
            found.append((start, at[opening.map[0]], tuple(name for _, name in above)))
            depth, start = int(opening.tag[1:]), min(at[opening.map[1]], len(text))
            above = [(d, name) for d, name in above if d < depth] + [(depth, inline.content)]
    return [*found, (start, len(text), tuple(name for _, name in above))]
