"""Cuts a stream of text before the first stop text."""

from __future__ import annotations

import asyncio
from typing import Any


class Stopped:
    """A queue's texts up to the first stop text, which may span several of them. None ends the stream."""

    def __init__(self, queue: asyncio.Queue | None, texts: list[str]):
        self.queue, self.texts = queue, texts
        self.held, self.over = "", False

    async def get(self) -> Any:
        return self._next(await self.queue.get())

    def get_nowait(self) -> Any:
        return self._next(self.queue.get_nowait())

    def _next(self, item):
        if item is None and self.held:
            self.queue.put_nowait(None)
            return self.cut("", True)
        return self.cut(item, False) if type(item) is str else item  # reasoning arrives as a subclass of str and passes

    def cut(self, text: str, last: bool) -> str:
        """Returns the part of the text so far that can be released now. last: no more text follows."""
        text, self.held = self.held + text, ""
        if self.over:
            return ""
        if at := [text.index(x) for x in self.texts if x in text]:
            self.over = True
            return text[: min(at)]
        begun = (n for n in range(len(text), 0, -1) if any(x.startswith(text[-n:]) for x in self.texts))
        count = 0 if last else next(begun, 0)
        self.held = text[len(text) - count :]
        return text[: len(text) - count]
