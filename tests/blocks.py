"""The commands in the code blocks of README.md and docs/*.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.conftest import REPO

README = "README.md"
PAGES = [README, *(f"docs/{path.name}" for path in sorted((REPO / "docs").glob("*.md")))]
"""README comes first and all run in one copy, since later pages use the runs of README's journeys."""
MARK = re.compile(r"not run by the tests: needs \w+")
"""Text of the paragraph before a block whose commands are not run, with the reason."""


@dataclass(frozen=True)
class Command:
    page: str
    line: int
    text: str
    block: int = 0
    """Number of its code block on the page; 0: the command is in the text."""
    marked: bool = False
    """MARK introduces its block."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def commands(page: str, text: str) -> Iterator[Command]:
    """Yields the commands of a page's code blocks, and the jobs in its text, in order. Removes comments and joins continued lines. A block
    with a language (```mermaid) has no commands."""
    fence, blocks, begun, paragraph, ended = None, 0, "", "", False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            if fence is not None:
                paragraph = ""
            fence = line if fence is None else None
            blocks += fence is not None
        elif fence == "```":
            begun += re.sub(r"\s+#.*", "", line)
            if begun.endswith("\\"):
                begun = begun[:-1]
            elif begun:
                yield Command(page, number, begun.strip(), blocks, bool(MARK.search(paragraph)))
                begun = ""
        elif fence is None:
            if line.strip():
                paragraph = line if ended else f"{paragraph} {line}"
            ended = not line.strip()
            yield from (Command(page, number, inline) for inline in re.findall(r"`(python jobs/[^`]+)`", line))
