"""An append-only file of JSON lines shared by threads and processes; each append is flushed to disk before it returns."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Damaged(ValueError):
    """A line other than the last can't be parsed."""


class Journal:
    def __init__(self, path: Path):
        self.path = path
        self._offset, self._lock, self._held = 0, threading.RLock(), None

    @contextmanager
    def locked(self) -> Iterator[list[dict]]:
        """Locks the file and yields the lines that others added since the last time. Reentrant."""
        with self._lock:
            if self._held:
                yield []
                return
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self.path.open("a+b") as self._held:
                try:
                    fcntl.flock(self._held, fcntl.LOCK_EX)
                    yield self._read()
                finally:
                    self._held = None

    def append(self, events: list[dict]) -> None:
        """Appends events. The caller must hold the lock."""
        if not events:
            return
        lines = "".join(json.dumps(e) + "\n" for e in events).encode()
        self._held.write(lines)
        self._held.flush()
        os.fsync(self._held.fileno())
        self._offset += len(lines)

    def events(self) -> list[dict]:
        """Returns all events so far. The caller must hold the lock."""
        self._held.seek(0)
        return parsed(self._held.read(), self.path)

    def _read(self) -> list[dict]:
        """Returns the events added since the last read. An unfinished last line was never acknowledged and is truncated."""
        self._held.seek(self._offset)
        whole, end, torn = self._held.read().rpartition(b"\n")
        if torn:
            self._held.truncate(self._offset + len(whole) + len(end))
        events = parsed(whole, self.path)
        self._offset += len(whole) + len(end)
        return events


def parsed(text: bytes, path: Path) -> list[dict]:
    """Parses JSON lines. path: their file, for the message. Raises Damaged."""
    events = []
    for line in text.splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError as e:
            raise Damaged(f"{path} is damaged ({e}): repair or remove the line {line[:80]!r}.") from None
    return events
