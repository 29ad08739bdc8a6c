"""Reads columns of a raw row. Each function raises BadRow, naming the column, if the value can't be used."""

from __future__ import annotations

import math

from lib.data.messages import (
    assistant,
    is_transcript,
    kind_of,
    read_tools,
    read_transcript,
    read_turns,
    user,
    with_system,
)
from lib.data.reasoning import COLUMNS
from lib.data.rows import BadRow, Message


def text(row: dict, column: str) -> str:
    """Returns a text, or a number as text."""
    if column not in row:
        raise BadRow(f"no {column}")
    value = row[column]
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        raise BadRow(f"{column} is {kind_of(value)}, not text")
    if not value.strip():
        raise BadRow(f"{column} is empty")
    return value


def texts(row: dict, column: str) -> list[str]:
    """Returns the texts of a column that holds one text or a list of them."""
    value = row.get(column)
    if isinstance(value, list):
        return [text({column: one}, column) for one in value]
    return [text(row, column)]


def reasoned(message: Message, row: dict) -> Message:
    """Returns an answer with the reasoning of a column beside it."""
    found = next((v for c in COLUMNS if isinstance(v := row.get(c), str) and v.strip()), None)
    return message | {"reasoning_content": found} if found else message


def tools(row: dict) -> dict:
    """Returns the tools that a row offers, as a part of its canonical row."""
    return read_tools(row.get("tools"))


def label(row: dict) -> bool:
    """Returns whether an answer is wanted."""
    value = row.get("label")
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    if (key := str(value).strip().lower()) not in known:
        raise BadRow(f"label is {value!r}, not true or false")
    return known[key]


def class_name(row: dict) -> str:
    """Returns the name of a row's class."""
    value = row.get("label")
    if value is None:
        raise BadRow("label is missing")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value != int(value):
        raise BadRow("label is a score, not a class (data.columns: {label: score} renames a column of scores)")
    if not isinstance(value, str | int | float):
        raise BadRow(f"label is {kind_of(value)}, not a class")
    return value.strip() if isinstance(value, str) else str(int(value))


def prompt(row: dict) -> list[Message]:
    """Reads the prompt column: text (one user message), an hh-rlhf transcript or messages. The row's system text goes first."""
    value = row.get("prompt")
    if isinstance(value, list | dict):
        turns = read_turns(value, "prompt")
    elif isinstance(value, str) and is_transcript(value):
        turns = read_transcript(value, "prompt")
        if turns[-1] == assistant(""):  # "… \n\nAssistant:" asks for the answer
            turns.pop()
    else:
        turns = [user(text(row, "prompt"))]
    return with_system(row.get("system"), turns)


def answer(prompt: list[Message], row: dict, column: str) -> list[Message]:
    """Reads an answer column: text (one assistant message), a transcript or messages. A prompt at its start is removed."""
    value = row.get(column)
    if isinstance(value, list | dict):
        turns = read_turns(value, column)
    elif isinstance(value, str) and is_transcript(value):
        turns = read_transcript(value, column)
    else:
        turns = [assistant(text(row, column))]
    if turns and turns[: len(prompt)] == prompt:
        return turns[len(prompt) :]
    if turns and turns[0]["role"] in ("system", "user"):
        raise BadRow(f"{column} is a conversation that doesn't start with the prompt")
    return turns
