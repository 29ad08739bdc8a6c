"""Reads a task's examples from the user's file (any format of lib/data/read.py) or a hub dataset, and checks the columns."""

from __future__ import annotations

from itertools import islice

from lib.config.job import Data
from lib.data import sources
from lib.data.rows import BadRow


def read(task: str, address: str | None, hub: tuple[str, str | None, str], columns: tuple[str, ...], limit: int | None):
    """Returns the first `limit` rows as (place, row), each with all of `columns`.

    address: a file, folder, s3:// or hub name; None means `hub` (name, configuration, split). Raises ValueError that names
    task_data.<task> if nothing is found, a column is missing or a row can't be read.
    """
    name, configuration, split = hub
    data = Data(source=address or name, name=None if address else configuration, split=split)
    try:
        source = sources.find(data)
        found = list(islice(sources.rows(source, data), limit))
    except (ValueError, OSError) as e:
        text = str(e).replace("data.source", f"task_data.{task}")
        hint = "" if address else f" Give a file: task_data.{task}."
        raise ValueError(f"{'' if f'task_data.{task}' in text else f'task_data.{task}: '}{text}{hint}") from None
    for place, row in found:
        if isinstance(row, BadRow):
            raise ValueError(f"task_data.{task}: {place}: {row}")
        missing = [c for c in columns if row.get(c) is None]
        if missing:
            there = ", ".join(row)
            raise ValueError(f"task_data.{task}: {place} has no {' and no '.join(missing)}; its columns are {there}.")
    if not found:
        raise ValueError(f"task_data.{task}: {address or name} has no rows.")
    return found
