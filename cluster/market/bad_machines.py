"""Recent failures: bad machines and markets that don't answer, with time and reason.

One small JSON file, {"vast/12": {"at": Unix time, "until": Unix time, "why": "never booted"}, "vast": {…}}.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import TypedDict

BAD_S = 6 * 3600.0
"""A bad machine is avoided for this long; its host may have repaired it by then."""
DOWN_S = 30.0
"""A market that didn't answer isn't tried for this long; short, since a cluster may have no other."""


class Failure(TypedDict):
    at: float
    """Unix time, as is `until`."""
    until: float
    why: str


class Memory:
    """Thread-safe. One process writes it: the one that rents."""

    def __init__(self, path: str | Path):
        self.path, self.lock = Path(path), threading.Lock()

    def bad(self, market: str, machine: str, why: str) -> None:
        """Records a bad machine; ignored if the market doesn't identify the machine ("")."""
        if machine:
            self._keep(f"{market}/{machine}", why, BAD_S)

    def is_bad(self, market: str, machine: str) -> str | None:
        """Returns why a machine is bad, and how long ago that was; None if it isn't known to be bad."""
        return self._known(f"{market}/{machine}")

    def down(self, market: str, why: str) -> None:
        self._keep(market, why, DOWN_S)

    def is_down(self, market: str) -> str | None:
        return self._known(market)

    def _read(self) -> dict[str, Failure]:
        kept: dict[str, Failure] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        return {name: entry for name, entry in kept.items() if entry["until"] > time.time()}

    def _known(self, name: str) -> str | None:
        with self.lock:
            entry = self._read().get(name)
        return f"{entry['why']} ({(time.time() - entry['at']) / 60:.0f} min ago)" if entry else None

    def _keep(self, name: str, why: str, seconds: float) -> None:
        with self.lock:
            now = time.time()
            kept = self._read() | {name: {"at": now, "until": now + seconds, "why": why}}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_name(f"{self.path.name}.part")
            part.write_text(json.dumps(kept, indent=1), encoding="utf-8")
            os.replace(part, self.path)
