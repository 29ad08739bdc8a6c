"""Errors in a request, and suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """An error in a config or on the command line. str() is the whole message to print."""


def nearest(name: str, names: Iterable[str], dashes: str = "") -> str:
    """Returns " Nearest: a, b." or "", to end an error message about an unknown name."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    last = {n.rsplit(".", 1)[-1]: n for n in names}
    close += [
        last[m]
        for m in difflib.get_close_matches(name.rsplit(".", 1)[-1], last, n=2, cutoff=0.75)
        if last[m] not in close
    ]
    return f" Nearest: {', '.join(dashes + c for c in close[:3])}." if close else ""
