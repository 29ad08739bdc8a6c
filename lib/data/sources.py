"""Resolves data.source and data.heldout to files (local, s3://, …), a hub dataset or the demo, and reads their rows."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

from lib.config.job import Data
from lib.data import demo, demo_steps, read
from lib.data.rows import BadRow, missing_as_null

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

DEMOS = {"demo": demo, "demo_steps": demo_steps}
"""{data.source: the module that generates its rows}"""

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Split names in file names, as the hub recognises them.
_PARTS = re.compile(r"(?:^|[^a-z])(train|test|valid|validation|val|dev|eval|heldout)(?:[^a-z]|$)")


@dataclass
class Source:
    key: str
    """data.source or data.heldout, for messages."""
    address: str
    """The value in the config."""
    kind: str
    """files, hub or demo."""
    fs: Any = None
    """An AbstractFileSystem of fsspec if kind is files."""
    files: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    size: int = 0
    """Bytes of all files."""
    split: str = "train"

    def fingerprint(self) -> str:
        """Returns a string that changes when a file does: path, size and modification time of each (on s3://, the ETag)."""
        return " ".join([self.kind, self.address, self.split, *(self.fs.ukey(f) for f in self.files)])

    def described(self) -> str:
        return f"split {self.split}" if self.kind in ("hub", "demo") else self.address

    def name_of(self, file: str) -> str:
        """Returns a file's address as a user would write it."""
        return self.fs.unstrip_protocol(file) if "://" in self.address else file


Found = tuple[Source, Source | None]  # data.source, and data.heldout if it is set


def find(data: Data, heldout: str | None = None) -> Source:
    """Returns the source that data.source names; with `heldout`, the value of data.heldout, the one that it names.

    Raises ValueError if it doesn't exist or can't be read.
    """
    key, address = ("data.heldout", heldout) if heldout else ("data.source", data.source)
    if address in DEMOS:
        return Source(key, address, "demo", split="heldout" if heldout else "train")
    import fsspec

    hub = _is_hub(data.source)
    if hub and heldout:
        # With a hub dataset, data.heldout may be the name of a split; a path stays a path.
        if not (_exists(address) or "://" in address or "/" in address or read.ending(address) in read.READERS):
            return Source(key, data.source, "hub", split=address)
    elif hub:
        return Source(key, address, "hub", split=data.split)
    protocol = address.split("://")[0] if "://" in address else "file"
    if protocol not in fsspec.available_protocols():
        near = get_close_matches(protocol, fsspec.available_protocols(), 2) or ["s3"]
        raise ValueError(f"{key}: {address}: there is no {protocol}://; nearest: {', '.join(f'{p}://' for p in near)}.")
    with _named(key, address):
        fs, path = fsspec.url_to_fs(address if "://" in address else os.path.expanduser(address))
        fs.invalidate_cache()
        return _files(key, address, fs, path)


# Libraries with errors that aren't OSErrors: for an unreachable endpoint, a damaged archive or damaged Parquet.
_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "pyarrow", "zlib", "_lzma", "lzma", "zstandard", "compression")


@contextmanager
def _named(key: str, address: str) -> Iterator[None]:
    """Turns reading errors inside the block into a ValueError that names the key, the address and the remedy."""
    try:
        yield
    except read.Unreadable as e:
        raise ValueError(f"{key}: {e}") from None
    except Exception as e:
        if isinstance(e, OSError | EOFError | ImportError) or type(e).__module__.split(".")[0] in _LIBRARIES:
            remedy = "Check the path and its permissions, and that the file is whole."
            if address.startswith("s3://"):
                remedy = (
                    "Check the bucket, the key, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                    "and AWS_ENDPOINT_URL for a store that isn't Amazon's."
                )
            elif "://" in address:
                remedy = (
                    "Check the address and that its fsspec package is installed (gcsfs for gs://, adlfs for az://)."
                )
            raise ValueError(f"{key}: {address} can't be read ({type(e).__name__}: {e}). {remedy}") from e
        raise


def _exists(address: str) -> bool:
    return os.path.exists(os.path.expanduser(address))


def _is_hub(address: str) -> bool:
    """Whether `address` isn't on this machine and looks like org/name rather than a path or a file."""
    if not _HUB_NAME.fullmatch(address) or _exists(address) or read.ending(address) in read.READERS:
        return False
    if "/" not in address and (near := get_close_matches(address, DEMOS, 1, 0.7)):
        raise ValueError(f"data.source: {address!r} is no file or folder; nearest: {near[0]}.")
    return not address.startswith(".") and not ("/" in address and os.path.isdir(address.split("/")[0]))


def _files(key: str, address: str, fs: AbstractFileSystem, path: str) -> Source:
    glob = any(c in address for c in "*?[") and not fs.exists(path)
    folder = not glob and fs.isdir(path)
    if glob:
        found = [p for p in fs.glob(path) if fs.isfile(p)]
    elif folder:
        found = [p for p in fs.find(path) if not any(part[:1] in "._" for part in p[len(path) :].split("/") if part)]
    else:
        found = [path] if fs.exists(path) else []
    if not found:
        near = _neighbours(fs, path)
        what = (
            "holds no files" if folder else "doesn't exist on this machine" if "://" not in address else "doesn't exist"
        )
        raise ValueError(
            f"{key}: {address} {what}. "
            + (f"Nearest: {', '.join(near)}." if near else "Give a file, a folder or a hub name.")
        )
    readable = sorted(p for p in found if read.ending(p) in read.READERS)
    texts = [p for p in readable if read.READERS[read.ending(p)] is read.plain]
    # A README or licence beside the data is not data.
    files = [p for p in readable if p not in texts] or texts if folder else readable
    if not files:
        raise ValueError(
            f"{key}: {address} has no file type that can be read: {', '.join(found[:3])}. "
            f"Readable: {' '.join(read.READERS)}, and these compressed ({' '.join(read.COMPRESSED)})."
        )
    if folder:
        _refuse_mixed_parts(key, address, files)
    size = sum(fs.size(f) or 0 for f in files)
    if size == 0:
        raise ValueError(f"{key}: {address} is empty (0 bytes).")
    return Source(key, address, "files", fs, files, sorted(set(found) - set(files)), size)


def _neighbours(fs: AbstractFileSystem, path: str) -> list[str]:
    parent, _, name = path.rstrip("/").rpartition("/")
    try:
        beside = [p.rstrip("/").rpartition("/")[2] for p in fs.ls(parent or "/", detail=False)]
    except OSError:
        return []
    near = [f"{parent}/{n}" for n in get_close_matches(name, beside, 3, 0.5)]
    return near if fs.protocol == ("file", "local") else [fs.unstrip_protocol(p) for p in near]


def _refuse_mixed_parts(key: str, address: str, files: list[str]) -> None:
    """Raises ValueError for a folder with both training and test files, which must not all be trained on."""
    parts = {f: m.group(1) for f in files if (m := _PARTS.search(f.rsplit("/", 1)[-1].lower()))}
    train = [f for f, part in parts.items() if part == "train"]
    other = [f for f, part in parts.items() if part != "train"]
    if train and other:
        raise ValueError(
            f"{key}: {address} holds both training and test files. "
            f"Name them: data.source: {train[0]}, data.heldout: {other[0]}."
        )


def rows(source: Source, data: Data, kind: str | None = None) -> Iterator[tuple[str, dict | BadRow]]:
    """Returns an iterator of (place, raw row), in order. `kind` is the kind of demo rows."""
    if source.kind == "demo":
        made = DEMOS[source.address].rows(kind, source.split)
        return ((f"{source.address} {source.split}[{n}]", row) for n, row in enumerate(made))
    if source.kind == "hub":
        dataset = load_hub(source, data)
        label = f"{source.address} {source.split}"
        return (
            (f"{label}[{n}]", missing_as_null({c: read.without_null_members(v) for c, v in row.items()}))
            for n, row in enumerate(dataset)
        )
    return _of_files(source)


def _of_files(source: Source) -> Iterator[tuple[str, dict | BadRow]]:
    for file in source.files:
        name = source.name_of(file)
        with _named(source.key, name):
            yield from read.rows(source.fs, file, name)


@cache
def _no_hub() -> bool:
    """Whether this machine can't resolve the hub's host name. Datasets loaded before are then read from the cache alone."""
    if getproxies().keys() & {"http", "https", "all"}:  # the proxy resolves the name
        return False
    for wait_s in (1, 2, None):  # a machine that has just booted may need a moment
        try:
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
        except socket.gaierror as e:
            if e.errno != socket.EAI_AGAIN or wait_s is None:
                return True
            time.sleep(wait_s)
        else:
            break
    return False


def load_hub(source: Source, data: Data) -> Any:
    """Loads the hub dataset as datasets.Dataset. Raises ValueError with the remedy. Code in the dataset is never run."""
    import datasets

    if _no_hub():  # online mode would request each file six times, over 23 s
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(source.address, data.name, split=source.split, revision=data.revision)
    except (OSError, ValueError) as e:
        remedy = "Check the name, data.name (its configuration), the split and, for a private one, HF_TOKEN."
        if isinstance(e, ConnectionError):
            remedy = (
                "Without a connection, give a local file or folder, or `demo`; "
                "or load it once on a connected machine with the same HF_HOME."
            )
        lines = " ".join(str(e).split())[:400]
        raise ValueError(
            f"{source.key}: hub dataset {source.address!r} (split {source.split}) can't be loaded: {lines}. {remedy}"
        ) from e
