"""Copies of a ledger in a store, one of each machine that writes it, so that what was spent outlives a rented head."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from lib.run import Run


class Copies:
    """store: a folder or s3://bucket/path; folder: this machine's of the cluster, which remembers the copy's name."""

    def __init__(self, store: str, cluster: str, folder: Path):
        self.place, self.mine = Run(f"{store.rstrip('/')}/{cluster}"), folder / "copy"
        self.sent: int | None = None

    def others(self) -> list[dict]:
        """What other machines wrote, as the lines of their ledgers."""
        fs, found = self.place.fs, []
        mine = self.mine.read_text() if self.mine.exists() else ""
        for path in fs.glob(f"{self.place.path}/*.jsonl"):
            if Path(path).stem != mine:
                found += [json.loads(line) for line in fs.cat_file(path).decode().splitlines()]
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
