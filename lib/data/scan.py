"""One pass over the data: recognise the format, convert and check rows, split, look for leaks. The driver's check and the
worker's load both run this pass, so they can't disagree; the worker also stores the rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain, islice

from lib.config.job import Data
from lib.data import reasoning
from lib.data.check import Check
from lib.data.formats import FORMATS
from lib.data.marks import MESSAGES, settle
from lib.data.read import Rows
from lib.data.recognise import recognise
from lib.data.repeats import without_prompt
from lib.data.rows import COMPARED, CONVERSIONS, BadRow, check_row, prompts_of
from lib.data.sources import DEMOS, Found, Source, rows
from lib.data.split import LEAK_WORDS, digest, half, is_heldout, normalise

SAMPLE = 100  # rows from which the format is recognised
FIRST = 1000  # rows of each source that the driver reads if there are too many to read in a second
SHOWN = 100  # bad rows and leaks stored with their place; all are counted
Keep = Callable[[str, str, dict, str], None]  # (kind, "train" or "heldout", canonical row, its place)


@dataclass
class _Reading:
    """An opened source of known format. `rows` starts at the first row."""

    source: Source
    format: str
    kind: str
    conversion: str | None
    also: list[str]
    convert: Callable[[dict], list[dict]]
    """Converts one raw row, with columns renamed, to canonical rows of `kind`."""
    renames: dict[str, str]
    rows: Rows


def scan(
    data: Data, found: Found, want: tuple[str, ...], keep: Keep, first: int | None = None, training: bool = True
) -> Check:
    """Reads data.source and data.heldout (or the `first` rows of each) and calls keep(kind, side, row, place) for good rows.

    Raises ValueError, naming the key and the remedy, if the format isn't recognised or isn't usable by the stage, if there
    are bad rows or leaks that the config doesn't allow, or if no rows are left.
    """
    source, held_source = found
    compared, want = COMPARED in want, tuple("preference" if kind == COMPARED else kind for kind in want)
    train = _open(source, data, want, first)
    check = Check(
        data.source, train.format, train.kind, conversion=train.conversion, also=train.also, how=data.reasoning
    )
    check.ignored = source.ignored + (held_source.ignored if held_source else [])
    content = hashlib.sha256()
    held: dict[bytes, str] = {}
    kept = {"train": 0, "heldout": 0}  # Check's own numbers are None if not all rows are read

    def hold(row: dict, place: str) -> None:
        other = data.heldout_half != "both" and half(digest(prompts_of(train.kind, row)[0])) != data.heldout_half
        if other or (data.heldout_limit is not None and kept["heldout"] >= data.heldout_limit):
            check.unused += 1  # not trained on either
        else:
            kept["heldout"] += 1
            if train.kind == "classified":
                check.heldout_classes[row["label"]] = check.heldout_classes.get(row["label"], 0) + 1
            keep(train.kind, "heldout", row, place)

    if held_source:
        heldout = _open(held_source, data, (train.kind,), first)
        check.heldout, check.heldout_format = held_source.described(), heldout.format
        for place, row in _good_rows(heldout, check, content.update, compared, data.reasoning):
            *_, last = prompts_of(train.kind, row)
            if train.kind != "text" or len(normalise(last).split()) >= LEAK_WORDS:
                held.setdefault(digest(last), place)
            hold(row, place)
    else:
        check.heldout = (
            f"{data.heldout_fraction:.2g} of the prompts, by their hash" if data.heldout_fraction else "none"
        )

    if data.heldout_half != "both":
        check.heldout += f", the {data.heldout_half} half"
    for place, row in _good_rows(train, check, content.update, compared, data.reasoning):
        asked = prompts_of(train.kind, row)
        if not held_source and is_heldout(digest(asked[0]), data.heldout_fraction):
            hold(row, place)
            continue
        leaked = next((p for p in asked if digest(p) in held), None) if held else None
        if leaked is not None:
            check.leaks += 1
            if len(check.leak_examples) < SHOWN:
                check.leak_examples.append((place, held[digest(leaked)], _shortened(leaked)))
        elif data.limit is not None and kept["train"] >= data.limit:
            check.unused += 1
        else:
            kept["train"] += 1
            check.wanted += row.get("label") is True
            if "negatives" in row:
                counts = [len(row["negatives"]), *check.negatives]
                check.negatives = [min(counts), max(counts)]
            elif train.kind == "classified":
                check.classes[row["label"]] = check.classes.get(row["label"], 0) + 1
            elif train.kind == "pair":
                scores = [row["score"], *check.scores]
                check.scores = [min(scores), max(scores)]
            keep(train.kind, "train", row, place)

    check.sha256 = content.hexdigest()
    check.rows, check.heldout_rows = kept["train"], kept["heldout"]
    if first is not None:
        check.complete, check.rows, check.heldout_rows = False, None, None
        check.note = f"the first {first:,} rows are checked here, all of them when the workers load it"
        check.sha256 = hashlib.sha256("\n".join(s.fingerprint() for s in found if s).encode()).hexdigest()
    _refuse(data, check, training)
    return check


def _open(source: Source, data: Data, want: tuple[str, ...], first: int | None) -> _Reading:
    """Recognises the format from the first rows. Raises ValueError if that fails, or if the stage can't use the format."""
    if source.kind == "demo":
        made = DEMOS[source.address].TRAIN_ROWS
        asked = [k for k in want if k == data.format]  # text: its plain texts, though chat is preferred
        kind = next((k for k in (*asked, *want) if k in made), None) or next(
            k for k in (*made, None) if k is None or any((k, w) in CONVERSIONS for w in want)
        )
        if kind is None:
            raise ValueError(
                f"{source.key}: {source.address} has {', '.join(made)} rows, but this stage wants {' or '.join(want)}. "
                "Give it a file, a folder or a hub name."
            )
        return _reading(source, source.address, kind, want, [], lambda row: [row], {}, rows(source, data, kind))
    stream = rows(source, data)
    if first is not None:
        stream = islice(stream, first)
    seen, good = [], []
    for place, row in stream:
        seen.append((place, row))
        if isinstance(row, dict):
            good.append(row)
        if len(good) == SAMPLE or len(seen) == FIRST:
            break
    if not good:
        why = (
            f"none of its first {len(seen)} rows can be read: {seen[0][0]}: {seen[0][1]}" if seen else "it has no rows"
        )
        raise ValueError(f"{source.key}: {source.address}: {why}")
    renames = data.columns if source.key == "data.source" else {k: v for k, v in data.columns.items() if k in good[0]}
    _check_renames(renames, good)
    name, also = recognise([_renamed(row, renames) for row in good], want, data.format, source.key)
    return _reading(source, name, FORMATS[name].kind, want, also, FORMATS[name].read, renames, chain(seen, stream))


def _reading(
    source: Source,
    name: str,
    kind: str,
    want: tuple[str, ...],
    also: list[str],
    read: Callable[[dict], list[dict]],
    renames: dict[str, str],
    stream: Rows,
) -> _Reading:
    if kind in want:
        return _Reading(source, name, kind, None, also, read, renames, stream)
    wanted = next(k for k in want if (kind, k) in CONVERSIONS)
    change, words = CONVERSIONS[kind, wanted]
    return _Reading(
        source, name, wanted, words, also, lambda row: [out for r in read(row) for out in change(r)], renames, stream
    )


def _good_rows(
    reading: _Reading, check: Check, add_to_hash: Callable[[bytes], None], compared: bool, how: str | None
) -> Iterator[tuple[str, dict]]:
    """Yields (place, canonical row). Bad rows are recorded in `check`; every row goes into the hash."""
    for place, raw in reading.rows:
        try:
            if isinstance(raw, BadRow):
                add_to_hash(str(raw).encode("utf-8", "replace"))
                raise raw
            try:
                add_to_hash(json.dumps(raw, sort_keys=True, ensure_ascii=False, default=str).encode())
            except UnicodeEncodeError:
                raise BadRow("has bytes that are not UTF-8") from None
            renamed = _renamed(raw, reading.renames)
            shorter = without_prompt(reading.format, renamed)
            converted = reading.convert(shorter or renamed)
            unlearnt = sum([settle(reading.kind, row) for row in converted])
            settled = [reasoning.settle(reading.kind, row, how) for row in converted]
            converted = [row for rows, _ in settled for row in rows]
            for row in converted:
                check_row(reading.kind, row, compared)
        except BadRow as why:
            check.bad_rows += 1
            short = str(why).split(" (")[0]
            check.reasons[short] = check.reasons.get(short, 0) + 1
            if len(check.bad) < SHOWN:
                check.bad.append((place, str(why)))
            continue
        check.unused += not converted
        check.unlearnt += unlearnt
        check.reasoning += sum(number for _, number in settled)
        check.repeats += shorter is not None
        for row in converted:
            check.offers_tools = check.offers_tools or "tools" in row
            check.tool_rows += "tools" in row or _calls_tools(row)
            yield place, row


def _calls_tools(row: dict) -> bool:
    return any("tool_calls" in m for column in MESSAGES for m in row.get(column) or ())


def _renamed(row: dict, columns: dict[str, str]) -> dict:
    return {columns.get(column, column): value for column, value in row.items()} if columns else row


def _check_renames(columns: dict[str, str], sample: list[dict]) -> None:
    there = list(dict.fromkeys(c for row in sample for c in row))
    for theirs, ours in columns.items():
        if theirs not in there:
            near = get_close_matches(theirs, there, 1, 0.4)
            nearest = f"; nearest: {near[0]}" if near else ""
            raise ValueError(
                f"data.columns: no column {theirs!r} in the data{nearest}; the columns are {', '.join(there)}"
            )
        if ours in there and ours not in columns:
            raise ValueError(
                f"data.columns: {theirs!r} can't become {ours!r}, which is there already; rename that column too."
            )


def _refuse(data: Data, check: Check, training: bool) -> None:
    total = (check.rows or 0) + (check.heldout_rows or 0) + check.leaks + check.unused + check.bad_rows
    if check.bad_rows and data.bad_rows == "error":
        of = f" of {total:,}" if check.complete else f" of the first {FIRST:,}"
        places = "\n".join(f"  {place}: {why}" for place, why in check.bad[:5])
        raise ValueError(
            f"data.source: {check.bad_rows:,}{of} rows can't be used ({check.why_bad()}):\n{places}\n"
            "Correct them, or set data.bad_rows: skip to leave them out."
        )
    if training and check.complete and check.rows and data.reasoning in ("learn", "mask") and not check.reasoning:
        raise ValueError(
            f"data.reasoning: {data.reasoning}, and no answer in {check.source} has reasoning (a column {' or '.join(reasoning.COLUMNS)}, "
            "or text between <think> and </think>, or before ####). Leave it out, or rename a column with data.columns."
        )
    if check.leaks and data.leaks == "error":
        examples = "\n".join(f"  {train} = {held}: {prompt}" for train, held, prompt in check.leak_examples[:3])
        raise ValueError(
            f"data.heldout: {check.leaks:,} training rows hold a held-out prompt (ignoring case, spacing and punctuation):\n"
            f"{examples}\nSet data.leaks: drop to leave them out of training, or give another data.heldout."
        )
    if training and check.complete and not check.rows:
        gone = (
            f"{check.bad_rows:,} bad, {check.leaks:,} leaked, {check.heldout_rows:,} held out, {check.unused:,} unused"
        )
        raise ValueError(f"data.source: {check.source} leaves no training rows ({gone}).")
    if check.complete and not check.heldout_rows and (data.heldout or data.heldout_fraction):
        raise ValueError(
            f"data.heldout: no rows are held out ({check.heldout}) of {total:,}. Raise data.heldout_fraction, "
            "set it to 0 to train without, or name a file."
        )


def _shortened(prompt: str, longest: int = 80) -> str:
    one_line = " ".join(prompt.split())
    return one_line if len(one_line) <= longest else one_line[:longest] + " …"
