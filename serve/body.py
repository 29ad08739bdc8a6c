"""Parses the JSON body of a request and rejects values that would break an engine."""

from __future__ import annotations

import json

DEPTH = 100
"""Most levels of nesting. vLLM's own parser allows 200, and Python's recursion limit is about 1,000."""


def read(body: bytes) -> dict:
    """Returns the parsed body. Raises ValueError with the reason if it is invalid."""
    try:
        asked = json.loads(body, parse_constant=_refuse)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except ValueError as e:
        raise ValueError(f"The body is not JSON: {e}.") from None
    if not isinstance(asked, dict):
        raise ValueError("The body must be a JSON object.")
    _check(asked)
    return asked


def write(asked: dict) -> bytes:
    return json.dumps(asked).encode()


_TOO_DEEP = f"The body is nested more than {DEPTH} levels deep."


def _refuse(constant: str):
    raise ValueError(f"{constant} is not a JSON number")


def _check(asked: dict) -> None:
    """Raises ValueError, naming the field, for nesting, numbers and texts that JSON allows but engines don't."""
    for key, value in asked.items():
        if not _encodes(key):
            raise ValueError("The body has a field name with an unpaired surrogate, which is not a valid character.")
        _field(key, value)


def _field(key: str, value) -> None:
    level: list = [value]
    for _ in range(DEPTH - 1):  # the body itself is the first level
        below: list = []
        for inside in level:
            if isinstance(inside, dict):
                below += [*inside, *inside.values()]
            elif isinstance(inside, list):
                below += inside
            elif isinstance(inside, str) and not _encodes(inside):
                raise ValueError(f"{key}: has an unpaired surrogate, which is not a valid character.")
            elif isinstance(inside, int | float) and not -(2**63) <= inside < 2**63:
                raise ValueError(f"{key}: has a number beyond 64 bits.")
        if not below:
            return
        level = below
    raise ValueError(_TOO_DEEP)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
