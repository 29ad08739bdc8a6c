"""Fetches the ledger of a rented head, which the head writes, over SSH with the cluster's key."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
import time
from dataclasses import dataclass

from cluster.market import registry, tags
from cluster.market.base import MarketError
from cluster.money.journal import Damaged
from cluster.money.ledger import Ledger
from cluster.money.rental_record import Entry
from cluster.node.key_folder import Folder

LOGIN_S, ALL_S = 8, 60.0
MARK = b"---- shoestring ----\n"
"""Separates the archive from anything that the login prints before it."""
LED = "led"
"""Kind of the ledger's notes {node id of a head: note}: written when Ray is up on it, and again with `fetched` when its ledger was
fetched before it was destroyed."""


@dataclass(frozen=True)
class Copy:
    """The state of this machine's copy of a rented head's ledger."""

    head: str
    """Its node id."""
    at: float | None
    """Unix time when it was fetched. None: never."""
    problem: str = ""
    """Why it can't be fetched now; "" if it was."""

    def says(self, now: float) -> str:
        """Returns a warning to print with the costs; "" if they are complete."""
        if not self.problem:
            return ""
        if self.at is None:
            return f"the ledger of its head {self.head} was never fetched ({self.problem}): the rentals of that head are missing here"
        return f"as of {(now - self.at) / 60:.0f} minutes ago: its head {self.head} can't be reached ({self.problem})"


def head_of(ledger: Ledger) -> Entry | None:
    """Returns the cluster's living rented head; None if there is none or it is this machine."""
    heads = [e for e in ledger.living() if e.id and tags.is_head(e.label) and e.node != ledger.machine]
    return heads[-1] if heads else None


def fetch(cluster: str) -> list[Copy]:
    """Fetches the ledger of the cluster's rented head. Returns the state of that copy and of those of heads that ended before their
    ledger was fetched; [] if there are no such heads."""
    ledger, found = Ledger(cluster), []
    if head := head_of(ledger):
        try:
            if head.rental is None or head.rental.ssh is None:
                raise OSError("it has no SSH address yet")
            if not (ledger.path.parent / "key").exists():
                raise OSError("this machine doesn't have the cluster's key")
            fetch_from(ledger, head.node, head.rental.ssh)
            found = [Copy(head.node, ledger.taken(head.node))]
        except (OSError, Damaged) as e:
            if not _has_ended(ledger, head):
                found = [Copy(head.node, ledger.taken(head.node), str(e))]
    notes = ledger.history(LED)
    for e in ledger.entries() if not ledger.stored else []:
        fetched = any("fetched" in note for note in notes.get(e.node, []))
        if e.node in notes and not e.living and not fetched and e.node != ledger.machine:
            found.append(Copy(e.node, ledger.taken(e.node), "it has ended"))
    return found


def _has_ended(ledger: Ledger, head: Entry) -> bool:
    """Returns whether the head's market no longer lists it; the ledger takes in that list. False if the market can't be reached."""
    at = time.time()
    try:
        listed = registry.find(head.market).list()
    except (MarketError, ValueError):
        return False
    ledger.observe(head.market, listed, at, leads=False)
    return not any(r.id == head.id for r in listed)


def fetch_from(ledger: Ledger, node: str, address: tuple[str, int]) -> None:
    """Fetches a head's ledger, the ledgers that it received, and the logs of failed boots. Raises OSError if it can't be reached,
    Damaged if a ledger can't be read."""
    folder = Folder(ledger.cluster)
    command = (
        f"cd ~/.shoestring/{ledger.cluster} && echo '{MARK.decode().strip()}' && "
        "tar -cf - $(ls -d ledger.jsonl others boots 2> /dev/null)"
    )
    shell = folder.ssh(node, address, BatchMode="yes", ConnectTimeout=str(LOGIN_S))
    try:
        done = subprocess.run([*shell, command], capture_output=True, timeout=ALL_S)
    except subprocess.TimeoutExpired:
        raise OSError(f"no answer in {ALL_S:.0f} s") from None
    _, marked, packed = done.stdout.partition(MARK)
    if not marked:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(lines[-1] if lines else f"ssh ended with {done.returncode}")
    try:
        files = _unpacked(packed)
    except tarfile.TarError as e:
        raise OSError(f"its reply is truncated: {e}") from None
    for name, content in files.items():
        if name == "ledger.jsonl":
            ledger.take(node, content)
        elif found := re.fullmatch(r"others/([\w-]+)\.jsonl", name):
            ledger.take(found[1], content)
        elif re.fullmatch(r"boots/[\w.-]+\.log", name) and not (folder.path / name).exists():
            (folder.path / "boots").mkdir(exist_ok=True, mode=0o700)
            (folder.path / name).write_bytes(content)


def _unpacked(packed: bytes) -> dict[str, bytes]:
    """Returns the regular files of a tar archive, in memory: names from an untrusted machine never reach the disk."""
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers() if m.isreg()}
