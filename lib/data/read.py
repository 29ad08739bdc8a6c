"""Files → rows, one at a time: JSON, JSON Lines, CSV/TSV, Parquet, plain text; also compressed (.gz .bz2 .xz .zst).

`rows(file)` yields (place, row): place is `path:line` (or `path[index]` for JSON arrays and Parquet) and row is a dict,
or a BadRow where that row can't be read. Memory stays at one block whatever the size of the file.
Files are UTF-8, with or without a byte-order mark. NaN and Infinity in a column are null: a value that isn't there.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, BinaryIO

from lib.data.rows import BadRow, missing_as_null

Rows = Iterator[tuple[str, dict | BadRow]]

BLOCK = 1 << 20  # bytes of a file looked at to tell its layout, and read at a time from a JSON array


class Unreadable(ValueError):
    """Why the rest of a file can't be read; the caller adds the config key. Never skipped: rows would be lost."""


def json_lines(f: BinaryIO, name: str) -> Rows:
    """One object per line; an array of objects is read too."""
    return _array(f, name) if _head(f).startswith(b"[") else _lines(f, name)


def json_file(f: BinaryIO, name: str) -> Rows:
    """An array of objects, or one object with a single list of objects in it, or JSON Lines under another ending."""
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
    for line in f:  # the first line is an object by itself: a row, if there is another below it
        start.append(line)
        if line.strip():
            return _lines(chain(start, f), name)
    return _one_object(b"".join(start), name)


def _head(f: BinaryIO) -> bytes:
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


def _array(f: BinaryIO, name: str) -> Rows:
    """Decodes one element at a time. Nothing can be read after a syntax error: Unreadable, not a BadRow."""
    decoder, pieces, n = json.JSONDecoder(), io.TextIOWrapper(f, "utf-8-sig", "surrogateescape"), 0
    text = pieces.read(BLOCK)
    at = text.index("[") + 1
    while True:
        at = _BETWEEN.match(text, at).end()
        if text.startswith("]", at):
            return
        why = "no closing ]"
        try:
            row, end = decoder.raw_decode(text, at)
            # A number cut by the end of the block would decode to another one.
            complete = end < len(text) or not isinstance(row, int | float)
        except ValueError as e:
            why, complete = str(e), False
        if complete:
            yield f"{name}[{n}]", _object(row)
            at, n = end, n + 1
            continue
        more = pieces.read(max(BLOCK, len(text) - at))  # doubling, so that one huge element isn't decoded many times
        if not more:
            after = f"behind row [{n - 1}]" if n else "at its first row"
            raise Unreadable(
                f"{name} is broken {after} ({why}), and nothing after that can be read. "
                "Mend the file, or write it as JSON Lines (.jsonl): one row per line."
            )
        text, at = text[at:] + more, 0


def _one_object(content: bytes, name: str) -> Rows:
    try:
        whole = json.loads(_decode(content, first=True))
    except ValueError as e:
        raise Unreadable(f"{name} is broken JSON ({e}). Mend it, or write it as JSON Lines (.jsonl).") from None
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


def comma_separated(f: BinaryIO, name: str) -> Rows:
    """The first line names the columns. Separated by tabs or semicolons where that line has them and no comma."""
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
        start = reader.line_num + 2  # a quoted cell may hold line breaks: the line where the row starts
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
    """Arrow gives every object in a column the keys of all the others, null where it had none: takes those away."""
    if isinstance(value, dict):
        return {k: without_null_members(v) for k, v in value.items() if v is not None}
    return [without_null_members(v) for v in value] if isinstance(value, list) else value


def plain(f: BinaryIO, name: str) -> Rows:
    """A row is a paragraph where the file has blank lines, else a line. (Told by its first megabyte.)"""
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
    # A byte that isn't UTF-8 becomes a surrogate, which the scan finds: so it costs its own row, not the file.
    return line.decode("utf-8-sig" if first else "utf-8", "surrogateescape")


READERS = {
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
    """The ending that says how to read a file: .jsonl of data.jsonl.gz."""
    stem = path.lower()
    for packed in COMPRESSED:
        stem = stem.removesuffix(packed)
    return "." + stem.rsplit("/", 1)[-1].rsplit(".", 1)[-1] if "." in stem.rsplit("/", 1)[-1] else ""


def rows(fs: Any, path: str, name: str) -> Rows:
    """The rows of one file on an fsspec file system, with `name` in their places."""
    for place, row in _read(fs, path, name):
        yield place, row if isinstance(row, BadRow) else missing_as_null(row)


def _read(fs: Any, path: str, name: str) -> Rows:
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
def _unpacked(fs: Any, path: str) -> Iterator[Any]:
    """The bytes of a file, decompressed by its ending."""
    if not path.lower().endswith(".zst"):
        with fs.open(path, "rb", compression="infer") as f:
            yield f
        return
    import pyarrow as pa  # fsspec has zstd only with another package, and without it gives the packed bytes

    with fs.open(path, "rb") as f, pa.CompressedInputStream(pa.PythonFile(f, "r"), "zstd") as unpacked:
        yield unpacked
