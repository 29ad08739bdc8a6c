"""The ledger files of a cluster's machines. Each machine writes one append-only file of its own.

The cluster's ledger is the union of these files. Each line counts once, however many copies hold it, so two machines with the same
files compute the same cost. A laptop sends its files to the head that it rents (join.py) and fetches the head's (head_ledger.py); a
store, if there is one, keeps the files of machines that can't be reached any more.
"""

from __future__ import annotations

import heapq
import json
import logging
import os
import secrets
import time
from itertools import accumulate
from pathlib import Path

from cluster.money.journal import parsed
from lib.run import Run

log = logging.getLogger(__name__)


def union(machines: list[list[dict]]) -> list[dict]:
    """Merges the machines' lines by time and drops duplicates. The lines of one machine stay in order even if its clock was set
    back."""
    ordered = []
    for lines in machines:
        times = accumulate((line["at"] for line in lines), max)
        ordered.append([(at, line) for at, line in zip(times, lines, strict=True)])
    found = {}
    for _, line in heapq.merge(*ordered, key=lambda pair: pair[0]):
        found.setdefault(json.dumps(line, sort_keys=True), line)
    return list(found.values())


class Others:
    """This machine's copies of other machines' ledgers: others/MACHINE.jsonl in the cluster's folder."""

    def __init__(self, folder: Path):
        self.folder, self.name = folder / "others", folder / "copy"
        self._read: tuple | None = ()
        """(name, size) of each file at the last read()."""

    def me(self) -> str:
        """Returns this machine's name, a random one generated at its first use."""
        if not self.name.exists():
            self.name.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.name.write_text(secrets.token_hex(6))
        return self.name.read_text()

    def changed(self) -> bool:
        """Returns whether a file changed since the last read()."""
        return self._there() != self._read

    def read(self) -> list[list[dict]]:
        """Returns the lines of each machine. Raises Damaged."""
        self._read = self._there()
        paths = [self.folder / name for name, _ in self._read]
        return [parsed(path.read_bytes(), path) for path in paths]

    def files(self) -> dict[str, bytes]:
        return {Path(name).stem: (self.folder / name).read_bytes() for name, _ in self._there()}

    def take(self, machine: str, lines: bytes) -> None:
        """Replaces this machine's copy unless it is longer: a copy received through a third machine may be older."""
        path = self.folder / f"{machine}.jsonl"
        if machine == self.me():
            return
        if not path.exists() or len(lines) > path.stat().st_size:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = path.with_suffix(".part")
            part.write_bytes(lines)
            os.replace(part, path)
        now = time.time()
        os.utime(path, (now, now))

    def taken(self, machine: str) -> float | None:
        path = self.folder / f"{machine}.jsonl"
        return path.stat().st_mtime if path.exists() else None

    def _there(self) -> tuple[tuple[str, int], ...]:
        return tuple(sorted((p.name, p.stat().st_size) for p in self.folder.glob("*.jsonl")))


class Copies:
    """Copies of all machines' ledgers in a store: a folder or s3://bucket/path."""

    def __init__(self, store: str, cluster: str, others: Others):
        self.place, self.here = Run(f"{store.rstrip('/')}/{cluster}"), others
        self.sent: int | None = None

    def others(self, needed: bool) -> list[list[dict]]:
        """Returns the lines of other machines' ledgers. needed: raise if the store can't be read; else return those read so far, since
        a user who only runs `status` or `sweep` may have no credentials for the store."""
        found = []
        try:
            fs = self.place.fs
            for path in fs.glob(f"{self.place.path}/*.jsonl"):
                if Path(path).stem != self.here.me():
                    found.append(parsed(fs.cat_file(path), path))
        except Exception as e:  # whatever the store's client raises
            if needed:
                raise
            log.warning("%s can't be read (%s): the spending of other machines is missing here.", self.place.path, e)
        return found

    def send(self, ledger: Path) -> None:
        """Replaces this machine's copy in the store if the ledger has grown. Raises OSError if the store can't be reached."""
        text = ledger.read_text()
        text = text[: text.rfind("\n") + 1]  # drop an unfinished last line
        if len(text) == self.sent:
            return
        self.place.write_text(f"{self.here.me()}.jsonl", text)
        self.sent = len(text)
