"""What a judge answered, kept in <run>/verdicts/, one file per question: an evaluation that goes on pays for nothing twice, and a
finished one can be run again with no endpoint there.

A file is named by the question and the model: its name, and its weights where the name is a folder or run on this disk. The
address doesn't count, so the same model on another port finds its replies; each file holds the address that it came from, and
the report says where one came from another. A question that the API refuses (HTTP 400, 413, 422: too long, a content filter)
or doesn't answer is kept as such; it is asked again whenever the endpoint is there, since a server may have been given a
longer window.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace

from lib.run import Run


@dataclass(frozen=True)
class Reply:
    text: str | None
    """None where none came."""
    tokens_in: int = 0
    tokens_out: int = 0
    cached: bool = False
    seconds: float = 0.0
    error: str = ""
    refused: bool = False
    """Answered, but with HTTP 400, 413 or 422: the API doesn't take this question."""
    url: str = ""
    """The address that answered."""


class Replies:
    """Those of one model that `run` keeps. `model`: its name at the endpoint."""

    def __init__(self, run: Run, model: str):
        self.run, self.mark = run, f"{_hash(_identity(model))[:8]}-"
        there = run.files("verdicts") if run.fs.exists(run.at("verdicts")) else []
        self.names = {name for name in there if name.startswith(self.mark)}

    def __bool__(self) -> bool:
        return bool(self.names)

    def get(self, body: dict) -> Reply | None:
        """The reply to a request body, with `cached` set."""
        if (name := self._name(body)) not in self.names:
            return None
        try:
            return replace(Reply(**json.loads(self.run.read_text(f"verdicts/{name}"))), cached=True)
        except (ValueError, TypeError):  # a damaged file; it is asked again
            return None

    def put(self, body: dict, reply: Reply) -> None:
        fields = ("text", "tokens_in", "tokens_out", "refused", "error", "url")
        self.run.write_text(f"verdicts/{self._name(body)}", json.dumps({k: getattr(reply, k) for k in fields}))
        self.names.add(self._name(body))

    def _name(self, body: dict) -> str:
        return f"{self.mark}{_hash(body)}.json"


def _identity(model: str) -> str:
    """The model's name, and the identity of its weights where the name is a run or model folder on this disk."""
    from lib.models import locate

    try:
        return f"{model} {locate.locate_for('judge.model', model)[1]}" if os.path.isdir(model) else model
    except ValueError:  # a folder that happens to have that name
        return model


def _hash(asked) -> str:
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]
