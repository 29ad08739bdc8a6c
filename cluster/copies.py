"""Copies of a ledger in a store, one of each machine that writes it, so that what was spent outlives a rented head."""

from __future__ import annotations

import json
import logging
import secrets
from pathlib import Path

from lib.run import Run

log = logging.getLogger(__name__)


class Copies:
    """store: a folder or s3://bucket/path; folder: this machine's of the cluster, which remembers the copy's name."""

    def __init__(self, store: str, cluster: str, folder: Path):
        self.place, self.mine = Run(f"{store.rstrip('/')}/{cluster}"), folder / "copy"
        self.sent: int | None = None

    def others(self, needed: bool) -> list[dict]:
        """What other machines wrote, as the lines of their ledgers. needed: raises where the store can't be read; else they are
        left out, since whoever only looks, or sweeps, may have no credentials for it."""
        found = []
        mine = self.mine.read_text() if self.mine.exists() else ""
        try:
            fs = self.place.fs
            for path in fs.glob(f"{self.place.path}/*.jsonl"):
                if Path(path).stem != mine:
                    found += [json.loads(line) for line in fs.cat_file(path).decode().splitlines()]
        except Exception as e:  # whatever the store's client raises
            if needed:
                raise
            log.warning("%s can't be read (%s): what other machines spent is missing here.", self.place.path, e)
        return found

    def send(self, ledger: Path) -> None:
        """Replaces this machine's copy, if there is more than was sent. Raises OSError where the store can't be reached."""
        text = ledger.read_text()
        text = text[: text.rfind("\n") + 1]  # without a line that is being written
        if len(text) == self.sent:
            return
        if not self.mine.exists():
            self.mine.write_text(secrets.token_hex(6))
        self.place.write_text(f"{self.mine.read_text()}.jsonl", text)
        self.sent = len(text)
