"""Parses the rows of a market's reply one by one: a malformed row must not hide the others, and our own rentals must remain
destroyable."""

from __future__ import annotations

import logging
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, ValidationError

from cluster.market.base import LABEL

log = logging.getLogger(__name__)
Row = TypeVar("Row", bound=BaseModel)
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""Dollars, seconds or gigabytes."""
_told: set[str] = set()


def readable(model: type[Row], rows: list, what: str) -> list[Row]:
    """Parses a market's public rows (offers) as `model`. Malformed rows are left out, and their number and the reason are logged.

    what: name of the list, for the log. Raises ValueError if no row can be parsed: the API has probably changed, and an empty list
    would mean that the market has nothing.
    """
    _listed(rows)
    good, odd = [], []
    for row in rows:
        try:
            good.append(model.model_validate(row))
        except ValidationError as e:
            odd.append((row, e))
    if odd:
        why = f"{_named(odd[0][0])}: {_first(odd[0][1])}"
        if not good:
            raise ValueError(f"none of {len(rows)} rows can be read; the first, {why}")
        _tell(f"{what}: {len(odd)} of {len(rows)} rows left out, since they can't be read. The first is {why}")
    return good


def ours(model: type[Row], rows: list, key: str, what: str) -> list[Row]:
    """Parses those rows of an account that belong to this project, by the label in `key`, as `model`. A malformed field counts as
    absent and is logged. Other rows are not parsed.

    Raises ValueError if no row has a label, or one of ours lacks a field that is needed to destroy it: a rental that is left out
    would count as gone, though it costs money.
    """
    _listed(rows)
    if rows and not any(isinstance(row, dict) and key in row for row in rows):
        raise ValueError(f"no row has a {key}")
    found = []
    for row in rows:
        if not isinstance(row, dict) or (key in row and not str(row[key]).startswith(LABEL)):
            continue
        try:
            found.append(model.model_validate(row))
        except ValidationError as e:
            odd = {str(each["loc"][0]) for each in e.errors() if each["loc"]}
            found.append(model.model_validate({k: v for k, v in row.items() if k not in odd}))
            _tell(f"{what}: {_named(row)} can't be read in full ({_first(e)}); unreadable fields count as absent")
    return found


def _listed(rows: object) -> None:
    if not isinstance(rows, list):
        raise ValueError(f"must be a list, is {type(rows).__name__}")


def _named(row: object) -> str:
    return f"row {row['id']}" if isinstance(row, dict) and row.get("id") is not None else f"a row {str(row)[:60]!r}"


def _first(e: ValidationError) -> str:
    first = e.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the row'}: {first['msg']}"


def _tell(text: str) -> None:
    """Logs a text only once, since lists are fetched every few seconds."""
    if text not in _told:
        _told.add(text)
        log.warning(text)
