"""The two entry points: `check` runs on the driver, in under a second and without torch or datasets; `load` on a worker.

    check(data, want)   reports what the data is and what is wrong with it, before anything starts
    load(data, want)    returns the rows as memory-mapped datasets.Dataset, after checking every row

`want` names the kinds of rows (lib/data/rows.py) that a stage can use, best first: ("chat", "text") or ("preference",),
or ("comparison",) for preference rows whose conversations are scored as a whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from lib.config.job import Data
from lib.data import sources
from lib.data.check import Check
from lib.data.formats import FORMATS
from lib.data.rows import COMPARED, KINDS
from lib.data.scan import FIRST, Keep, scan

if TYPE_CHECKING:
    from datasets import Dataset

LARGE = 64 << 20  # bytes; of larger data the driver reads only the first rows

TOGETHER = 1000  # rows written at a time

# Messages and tools are stored as JSON (lib/data/exact.py). Arrow's structs would give every message the keys of all
# others, set to null, and templates that test `'tool_calls' in message` would render them.
COLUMNS = {
    "text": {"text": "string"},
    "chat": {"messages": "json", "tools": "json", "unlearnt": "json"},
    "prompt": {"prompt": "json", "tools": "json"},
    "problem": {"prompt": "json", "reference": "string", "tools": "json"},
    "preference": {"prompt": "json", "chosen": "json", "rejected": "json", "tools": "json"},
    "labelled": {"prompt": "json", "completion": "json", "label": "bool", "tools": "json"},
    "pair": {"a": "string", "b": "string", "score": "float64"},
    "contrastive": {"anchor": "string", "positive": "string", "negatives": "json"},
    "classified": {"text": "string", "second": "string", "label": "string"},
}


@dataclass
class Loaded:
    train: Dataset
    heldout: Dataset | None
    """None if heldout_fraction is 0."""
    kind: str
    check: Check


def absolute(data: Data) -> Data:
    """Returns `data` with existing local paths made absolute, so that workers find them from any working directory."""

    def one(address: str) -> str:
        there = address not in sources.DEMOS and "://" not in address and os.path.exists(os.path.expanduser(address))
        return os.path.abspath(os.path.expanduser(address)) if there else address

    return replace(data, source=one(data.source), heldout=data.heldout and one(data.heldout))


def check(
    data: Data, want: tuple[str, ...], training: bool = True, keep: Keep = lambda *row: None, first: int = FIRST
) -> Check:
    """Finds and checks the data without loading it. Raises ValueError that names the key and the remedy.

    Reads everything up to 64 MB; of larger data, the `first` rows of source and heldout; of a hub dataset, nothing.
    keep(kind, "train" or "heldout", row, place) is called with every good row read. With training=False, for evaluation,
    it is no error if no rows are left to train on (heldout_fraction: 1).
    """
    _check_settings(data, want)
    found = _find(data)
    if found[0].kind == "hub":
        note = f"a hub dataset (split {data.split}): its rows are checked when the workers load it"
        names = hashlib.sha256("\n".join([data.name or "", *(s.fingerprint() for s in found if s)]).encode())
        return Check(data.source, rows=None, heldout_rows=None, complete=False, note=note, sha256=names.hexdigest())
    large = sum(s.size for s in found if s) > LARGE
    return scan(data, found, want, keep, first if large else None, training)


def load(data: Data, want: tuple[str, ...], training: bool = True) -> Loaded:
    """Returns the rows, memory-mapped from files under HF_DATASETS_CACHE; the same on every worker. The columns "tools" and
    "unlearnt" exist only if some row uses them.

    The first worker of a node builds the files while the others wait. A changed source, setting or reader creates new
    files. Raises ValueError as `check` does, but always after checking every row.
    """
    import datasets
    from filelock import FileLock

    from lib.data import exact  # noqa: F401 (registers the column type that the files name)

    _check_settings(data, want)
    found = _find(data)
    hub = [sources.load_hub(s, data)._fingerprint for s in found if s and s.kind == "hub"]
    code = [p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py"))]
    made_of = [
        json.dumps(asdict(data), sort_keys=True),
        *want,
        str(training),
        *(s.fingerprint() for s in found if s),
        *hub,
    ]
    key = hashlib.sha256("\n".join(made_of).encode() + b"".join(code)).hexdigest()[:32]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "shoestring" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            _build(folder, data, found, want, training)
    result = Check(**json.loads((folder / "check.json").read_text()))
    result.bad = [(place, why) for place, why in result.bad]  # JSON has no tuples
    result.leak_examples = [(place, held, prompt) for place, held, prompt in result.leak_examples]
    assert result.kind is not None, "known once rows have been read"
    train, heldout = (datasets.Dataset.from_file(str(folder / f"{side}.arrow")) for side in ("train", "heldout"))
    contexts = result.unlearnt or result.how in ("learn", "mask")  # answers that lib/data/reasoning.py makes context
    for column, used in (("tools", result.offers_tools), ("unlearnt", contexts)):
        if column in train.column_names and not used:
            train, heldout = train.remove_columns(column), heldout.remove_columns(column)
    return Loaded(train, heldout if len(heldout) else None, result.kind, result)


def _build(folder: Path, data: Data, found: sources.Found, want: tuple[str, ...], training: bool) -> None:
    """Writes train.arrow, heldout.arrow and check.json to a temporary folder, then renames it to `folder`."""
    import pyarrow as pa
    from datasets import Features, Value
    from datasets.arrow_writer import ArrowWriter

    from lib.data.exact import ExactJson, array

    building = folder.with_name(f"{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)  # left by a killed worker; the caller holds the lock
    building.mkdir()
    writers: dict[str, ArrowWriter] = {}
    waiting: dict[str, list[dict]] = {"train": [], "heldout": []}
    undo = ExitStack()

    def writer(kind: str, side: str) -> ArrowWriter:
        if side not in writers:
            columns = {c: ExactJson() if t == "json" else Value(t) for c, t in COLUMNS[kind].items()}
            writers[side] = ArrowWriter(path=str(building / f"{side}.arrow"), features=Features(columns))
            undo.callback(writers[side].close)
        return writers[side]

    def write(kind: str, side: str) -> None:
        values = {c: [row.get(c) for row in waiting[side]] for c in COLUMNS[kind]}
        columns = {
            c: array(v) if COLUMNS[kind][c] == "json" else pa.array(v, COLUMNS[kind][c]) for c, v in values.items()
        }
        writer(kind, side).write_table(pa.table(columns))
        waiting[side].clear()

    def keep(kind: str, side: str, row: dict, place: str) -> None:
        waiting[side].append(row)
        if len(waiting[side]) == TOGETHER:
            write(kind, side)

    with undo:
        undo.callback(shutil.rmtree, building, ignore_errors=True)  # a no-op after success, when it has been renamed
        result = scan(data, found, want, keep, training=training)
        assert result.kind is not None, "known once rows have been read"
        for side in ("train", "heldout"):
            write(result.kind, side)
            writer(result.kind, side).finalize()
        (building / "check.json").write_text(json.dumps(asdict(result)))
        building.rename(folder)


def _find(data: Data) -> sources.Found:
    if data.heldout is not None and data.heldout == data.source and data.source not in sources.DEMOS:
        raise ValueError(
            "data.heldout is the same as data.source; name other rows, or leave it out to hold out a share of data.source."
        )
    if data.source in sources.DEMOS and data.heldout is None:
        data = replace(data, heldout=data.source)  # the demo's own held-out rows, which never equal a training row
    found = sources.find(data), sources.find(data, data.heldout) if data.heldout else None
    for key in ("name", "revision", "split"):
        if found[0].kind != "hub" and getattr(data, key) != getattr(Data(), key):
            raise ValueError(
                f"data.{key}: {getattr(data, key)} selects part of a hub dataset, but {data.source} isn't one: all of its rows are "
                "read. Leave it out; data.source and data.heldout name the files to train on and to hold out."
            )
    return found


def _check_settings(data: Data, want: tuple[str, ...]) -> None:
    assert want and all(kind in (*KINDS, COMPARED) for kind in want), want
    if data.format != "auto" and data.format not in FORMATS:
        near = ", ".join(get_close_matches(data.format, FORMATS, 3, 0.4)) or "none"
        raise ValueError(f"data.format: no format {data.format!r}; nearest: {near}; known: auto, {', '.join(FORMATS)}.")
    if not 0 <= data.heldout_fraction <= 1:
        raise ValueError(f"data.heldout_fraction is {data.heldout_fraction}; it is a share and must be from 0 to 1.")
    for key in ("limit", "heldout_limit"):
        given = getattr(data, key)
        if given is not None and given < 1:
            raise ValueError(f"data.{key} is {given}; give 1 or more, or null for all rows.")
