"""Keeps an engine running: when it dies, another is started in the same replica, and requests are refused until it is ready."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve.engines import Engine


class Keeper:
    """engine: the one that answers; None while another is starting."""

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
        """Whether the engine can answer. If it can't, its successor is starting when this returns."""
        if not (engine := self.engine):
            return False
        try:
            await engine.check()
        except Exception:  # whatever it died of
            if self.engine is engine:  # nobody else noticed meanwhile
                self.engine = None
                self.began = time.monotonic()
                self.replacing = asyncio.create_task(self._replace(engine))
            return False
        return True

    async def _replace(self, dead: Engine) -> None:
        await asyncio.to_thread(dead.close)
        await self.begin()

    async def check(self) -> None:
        """Serve's health check. Raises only if no successor could be started: Serve then replaces the replica."""
        if not await self.alive() and self.replacing and self.replacing.done():
            self.replacing.result()

    def wait(self) -> int:
        """Seconds until the successor is likely to be ready, from how long the last start took."""
        return max(1, math.ceil(self.began + self.took - time.monotonic()))
