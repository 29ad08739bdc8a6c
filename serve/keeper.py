"""Keeps an engine running: when it dies, starts another in the same replica. Requests are refused until it is ready."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve.engines import Engine


class Keeper:
    """engine: the running engine; None while a new one is starting."""

    def __init__(self, start: Callable[[], Awaitable[Engine]]):
        self.start = start
        self.engine: Engine | None = None
        self.began = self.took = 0.0
        self.replacing: asyncio.Task | None = None

    async def begin(self) -> None:
        self.began = time.monotonic()
        self.engine = await self.start()
        self.took = time.monotonic() - self.began

    async def alive(self) -> bool:
        """Returns whether the engine can answer. If it can't, a new one is already starting."""
        if not (engine := self.engine):
            return False
        try:
            await engine.check()
        except Exception:  # whatever the cause
            if self.engine is engine:  # no other request has noticed it yet
                self.engine = None
                self.began = time.monotonic()
                self.replacing = asyncio.create_task(self._replace(engine))
            return False
        return True

    async def _replace(self, dead: Engine) -> None:
        await asyncio.to_thread(dead.close)
        await self.begin()

    async def check(self) -> None:
        """Serve's health check. Raises only if no new engine could be started; Serve then replaces the replica."""
        if not await self.alive() and self.replacing and self.replacing.done():
            self.replacing.result()

    def wait(self) -> int:
        """Returns the estimated seconds until the new engine is ready, from the duration of the last start."""
        return max(1, math.ceil(self.began + self.took - time.monotonic()))
