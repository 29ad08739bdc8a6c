"""Reads files row by row: JSON, JSON Lines, CSV/TSV, Parquet, plain text; also compressed (.gz .bz2 .xz .zst).

`rows` yields (place, row). place is `path:line`, or `path[index]` for JSON arrays and Parquet. row is a dict, or a
BadRow if the row can't be read. Memory use is one block, whatever the size of the file.
Files are UTF-8, with or without a byte-order mark. NaN and Infinity in a column are read as null (a missing value).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO

from lib.data.rows import BadRow, missing_as_null

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

Rows = Iterator[tuple[str, dict | BadRow]]

BLOCK = 1 << 20  # bytes from which a file's layout is recognised, and characters read at a time from a JSON array


class Unreadable(ValueError):
    """The rest of a file can't be read. The caller adds the config key. Never skipped, since rows would be lost."""


def json_lines(f: io.BufferedReader, name: str) -> Rows:
    """Reads one object per line; also an array of objects."""
    return _array(f, name) if _head(f).startswith(b"[") else _lines(f, name)


def json_file(f: io.BufferedReader, name: str) -> Rows:
    """Reads an array of objects, one object that contains a single list of objects, or JSON Lines in a .json file."""
    if _head(f).startswith(b"["):
        return _array(f, name)
    start: list[bytes] = []
    for line in f:
        start.append(line)
        if _decode(line, first=len(start) == 1).strip():
            break
    try:
        json.loads(_decode(b"".join(start), first=True))
    except ValueError:
        return _one_object(b"".join(start) + f.read(), name)
    for line in f:  # the first line is a complete object; if another line follows, this is JSON Lines
        start.append(line)
        if line.strip():
            return _lines(chain(start, f), name)
    return _one_object(b"".join(start), name)


def _head(f: io.BufferedReader) -> bytes:
    return f.peek(BLOCK).lstrip(b"\xef\xbb\xbf \t\r\n")


def _lines(f: Iterable[bytes], name: str) -> Rows:
    for n, line in enumerate(f, 1):
        text = _decode(line, first=n == 1).strip()
        if not text:
            continue
        try:
            row = json.loads(text)
        except ValueError as e:
            row = BadRow(f"broken JSON ({e})")
        yield f"{name}:{n}", _object(row)


_BETWEEN = re.compile(r"[\s,]*")


def _array(f: io.BufferedReader, name: str) -> Rows:
    """Decodes one element at a time. Raises Unreadable at a syntax error, since nothing after it can be read."""
    decoder, pieces, n = json.JSONDecoder(), io.TextIOWrapper(f, "utf-8-sig", "surrogateescape"), 0
    text = pieces.read(BLOCK)
    at = text.index("[") + 1
    while True:
        between = _BETWEEN.match(text, at)
        assert between is not None, "the pattern also fits the empty text"
        at = between.end()
        if text.startswith("]", at):
            return
        why = "no closing ]"
        try:
            row, end = decoder.raw_decode(text, at)
            # A number cut by the end of the block would decode to a different number.
            complete = end < len(text) or not isinstance(row, int | float)
        except ValueError as e:
            why, complete = str(e), False
        if complete:
            yield f"{name}[{n}]", _object(row)
            at, n = end, n + 1
            continue
        more = pieces.read(max(BLOCK, len(text) - at))  # doubling, so that one huge element isn't decoded many times
        if not more:
            after = f"after row [{n - 1}]" if n else "at its first row"
            raise Unreadable(
                f"{name} is broken {after} ({why}), and the rest can't be read. "
                "Repair the file, or write it as JSON Lines (.jsonl): one row per line."
            )
        text, at = text[at:] + more, 0


def _one_object(content: bytes, name: str) -> Rows:
    try:
        whole = json.loads(_decode(content, first=True))
    except ValueError as e:
        raise Unreadable(f"{name} is broken JSON ({e}). Repair it, or write it as JSON Lines (.jsonl).") from None
    if not isinstance(whole, dict):
        raise Unreadable(f"{name} holds {json.dumps(whole)[:40]}, not rows.")
    lists = [k for k, v in whole.items() if isinstance(v, list) and v and all(_is_row(x) for x in v)]
    if len(lists) == 1:
        for n, row in enumerate(whole[lists[0]]):
            yield f"{name}[{n}]", row
    else:  # a file of one row
        yield f"{name}[0]", whole


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and "role" not in value and "from" not in value  # those are messages


def _object(row: Any) -> dict | BadRow:
    return row if isinstance(row, dict | BadRow) else BadRow(f"is {json.dumps(row)[:40]}, not an object with columns")


def comma_separated(f: io.BufferedReader, name: str) -> Rows:
    """Reads CSV whose first line names the columns. The separator is a tab or semicolon if that line has one and no comma."""
    csv.field_size_limit(1 << 30)
    lines = (_decode(line, first=n == 0) for n, line in enumerate(f))
    first = next(lines, "")
    separator = next((s for s in "\t;" if s in first and "," not in first), ",")
    columns = next(csv.reader([first], delimiter=separator), [])
    if any("\udc80" <= c <= "\udcff" for c in first):
        raise Unreadable(
            f"{name}: the first line, which names the columns, has bytes that are not UTF-8; save it as UTF-8."
        )
    twice = {c for c in columns if columns.count(c) > 1}
    if twice:
        raise Unreadable(f"{name}: the first line must name the columns, but it has {min(twice)!r} twice")
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        start = reader.line_num + 2  # the line where the row starts; quoted cells may hold line breaks
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            if "end of data" in str(e):
                raise Unreadable(
                    f"{name}:{start} opens a quote that is never closed, so the rest can't be read."
                ) from None
            yield f"{name}:{start}", BadRow(f"broken CSV ({e})")
            continue
        if not cells:
            continue
        if len(cells) == len(columns):
            yield f"{name}:{start}", dict(zip(columns, cells, strict=True))
        else:
            yield f"{name}:{start}", BadRow(f"has {len(cells)} cells, the first line has {len(columns)}")


def parquet(f: BinaryIO, name: str) -> Rows:
    import pyarrow.parquet as pq

    n = 0
    for batch in pq.ParquetFile(f).iter_batches(batch_size=256):
        for row in batch.to_pylist():
            yield f"{name}[{n}]", {column: without_null_members(value) for column, value in row.items()}
            n += 1


def without_null_members(value: Any) -> Any:
    """Removes null members of objects: Arrow gives every object in a column the keys of all others, set to null."""
    if isinstance(value, dict):
        return {k: without_null_members(v) for k, v in value.items() if v is not None}
    return [without_null_members(v) for v in value] if isinstance(value, list) else value


def plain(f: io.BufferedReader, name: str) -> Rows:
    """Reads paragraphs as rows if the first megabyte of the file has blank lines, otherwise lines."""
    head = f.peek(BLOCK)
    paragraphs = any(not line.strip() for line in head.strip().split(b"\n"))
    held: list[str] = []
    start = 1
    for n, line in enumerate(f, 1):
        text = _decode(line, first=n == 1).rstrip("\r\n")
        if text.strip():
            start = n if not held else start
            held.append(text)
        if held and not (paragraphs and text.strip()):
            yield f"{name}:{start}", {"text": "\n".join(held)}
            held = []
    if held:
        yield f"{name}:{start}", {"text": "\n".join(held)}


def _decode(line: bytes, first: bool) -> str:
    # A byte that isn't UTF-8 becomes a surrogate, which scan.py finds: only that row is bad, not the file.
    return line.decode("utf-8-sig" if first else "utf-8", "surrogateescape")


READERS: dict[str, Callable[[io.BufferedReader, str], Rows]] = {
    ".json": json_file,
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".csv": comma_separated,
    ".tsv": comma_separated,
    ".parquet": parquet,
    ".txt": plain,
    ".text": plain,
    ".raw": plain,
    ".md": plain,
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


def ending(path: str) -> str:
    """Returns the ending that selects the reader: ".jsonl" for data.jsonl.gz."""
    stem = path.lower()
    for packed in COMPRESSED:
        stem = stem.removesuffix(packed)
    return "." + stem.rsplit("/", 1)[-1].rsplit(".", 1)[-1] if "." in stem.rsplit("/", 1)[-1] else ""


def rows(fs: AbstractFileSystem, path: str, name: str) -> Rows:
    """Yields (place, row) of one file on an fsspec filesystem, with `name` in the places."""
    for place, row in _read(fs, path, name):
        yield place, row if isinstance(row, BadRow) else missing_as_null(row)


def _read(fs: AbstractFileSystem, path: str, name: str) -> Rows:
    reader = READERS[ending(path)]
    if reader is parquet:
        with fs.open(path, "rb") as f:
            yield from parquet(f, name)
        return
    with _unpacked(fs, path) as unpacked:
        f = io.BufferedReader(unpacked, BLOCK)
        start = f.peek(4)[:4]
        if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start:
            raise Unreadable(f"{name} is UTF-16; save it as UTF-8.")
        yield from reader(f, name)


@contextmanager
def _unpacked(fs: AbstractFileSystem, path: str) -> Iterator[Any]:
    """Opens a file for reading, decompressed according to its ending."""
    if not path.lower().endswith(".zst"):
        with fs.open(path, "rb", compression="infer") as f:
            yield f
        return
    import pyarrow as pa  # fsspec needs another package for zstd, and without it returns the compressed bytes

    with fs.open(path, "rb") as f, pa.CompressedInputStream(pa.PythonFile(f, "r"), "zstd") as unpacked:
        yield unpacked
