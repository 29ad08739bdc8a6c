"""Recognises the format of rows by their columns and the types of the values, from the first rows of a source."""

from __future__ import annotations

from collections import Counter

from lib.data.formats import FLAG, FORMATS, LIST, NUMBER, TEXT, TRANSCRIPT, TURN, TURNS
from lib.data.messages import is_transcript
from lib.data.rows import CONVERSIONS


def column_types(rows: list[dict]) -> dict[str, str]:
    """Returns {column: most common type of its values}, for the columns that at least half of the rows have."""
    seen: dict[str, Counter] = {}
    for row in rows:
        for column, value in row.items():
            if value is not None:
                seen.setdefault(column, Counter())[_type_of(value)] += 1
    return {column: types.most_common(1)[0][0] for column, types in seen.items() if 2 * types.total() >= len(rows)}


def _type_of(value: object) -> str:
    if isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false")):
        return FLAG
    if isinstance(value, int | float):
        return FLAG if value in (0, 1) else NUMBER
    if isinstance(value, str):
        if is_transcript(value):
            return TRANSCRIPT
        return NUMBER if value.strip().replace(".", "", 1).lstrip("-").isdecimal() else TEXT
    if isinstance(value, dict):
        return TURN if "role" in value or "from" in value else "object"
    if isinstance(value, list) and value and isinstance(value[0], dict) and ("role" in value[0] or "from" in value[0]):
        return TURNS
    return LIST


def fitting(types: dict[str, str]) -> list[str]:
    """Returns the names of the formats whose columns all exist with a type they can read."""
    return [n for n, f in FORMATS.items() if all(types.get(column) in ok for column, ok in f.needs.items())]


def recognise(rows: list[dict], want: tuple[str, ...], insisted: str, key: str) -> tuple[str, list[str]]:
    """Returns (the format of these rows, other formats that also fit). Raises ValueError naming the config key.

    Chooses the first fitting format of a wanted kind, otherwise the first that converts to a wanted kind (CONVERSIONS in
    lib/data/rows.py). So pairs that also have a messages column serve both SFT and DPO.
    """
    types = column_types(rows)
    found = [insisted] if insisted != "auto" else fitting(types)
    absent = [c for n in found for c in FORMATS[n].needs if not any(c in row for row in rows)]
    if insisted != "auto" and absent:
        raise ValueError(
            f"{key}: data.format is {insisted}, which needs the column {absent[0]!r}; the columns are "
            f"{', '.join(types) or 'none'}. Set data.columns: {{theirs: {absent[0]}}}, or data.format: auto."
        )
    if not found:
        raise ValueError(
            f"{key}: the format isn't recognised. The first row:\n{shown(rows[0])}\n"
            f"Rename columns with data.columns: {{theirs: ours}} to one of:\n{known()}"
        )
    # Conversations with chosen and rejected, or with a label, also fit plain conversations: the larger format wins.
    found = [n for n in found if not any(FORMATS[n].needs.keys() < FORMATS[m].needs.keys() for m in found)]
    direct = [n for kind in want for n in found if FORMATS[n].kind == kind]
    converted = [n for kind in want for n in found if (FORMATS[n].kind, kind) in CONVERSIONS]
    if direct or converted:
        chosen = (direct or converted)[0]
        return chosen, [n for n in found if n != chosen]
    name, kind = found[0], FORMATS[found[0]].kind
    called = name if name == kind else f"{name} ({kind})"
    raise ValueError(
        f"{key}: the rows are {called}, but this stage wants {' or '.join(want)} rows. "
        "Give it a data.source of one of these formats: "
        + ", ".join(n for n, f in FORMATS.items() if f.kind in want or any((f.kind, k) in CONVERSIONS for k in want))
    )


def known() -> str:
    width = max(map(len, FORMATS))
    lines = [f"  {n:<{width}}  {', '.join(f.needs)}  ({f.kind})" for n, f in FORMATS.items()]
    return "formats and the columns they need:\n" + "\n".join(lines)


def shown(row: dict, longest: int = 60) -> str:
    """Formats one row for printing: a line per column, long values cut."""
    cut = {c: r if len(r := repr(v)) <= longest else r[:longest] + " …" for c, v in row.items()}
    return "\n".join(f"  {c}: {v}" for c, v in list(cut.items())[:20])
