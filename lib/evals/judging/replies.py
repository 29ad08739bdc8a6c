"""Stores a judge's replies in <run>/verdicts/, one file per question: a resumed evaluation pays for no question twice, and a
finished one can be rerun without the endpoint.

A file is named by a hash of the question and the model: its name, and its weights if the name is a folder or run on this disk.
The endpoint's address isn't part of it, so the replies are reused when the same model is served on another port; each file
stores the address that replied, and the report mentions replies from another one. A question that the API refuses (HTTP 400,
413, 422: too long, a content filter) or doesn't answer is stored as such, and is asked again whenever the endpoint is
reachable, since the server's context window may have been enlarged.
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
    """None if there was no reply."""
    tokens_in: int = 0
    tokens_out: int = 0
    cached: bool = False
    seconds: float = 0.0
    error: str = ""
    refused: bool = False
    """The API rejected this question with HTTP 400, 413 or 422."""
    url: str = ""
    """The address that replied."""


class Replies:
    """The replies of one model that `run` stores. model: its name at the endpoint."""

    def __init__(self, run: Run, model: str):
        self.run, self.mark = run, f"{_hash(_identity(model))[:8]}-"
        there = run.files("verdicts") if run.fs.exists(run.at("verdicts")) else []
        self.names = {name for name in there if name.startswith(self.mark)}

    def __bool__(self) -> bool:
        return bool(self.names)

    def get(self, body: dict) -> Reply | None:
        """Returns the stored reply to a request body, with `cached` set; None if there is none."""
        if (name := self._name(body)) not in self.names:
            return None
        try:
            return replace(Reply(**json.loads(self.run.read_text(f"verdicts/{name}"))), cached=True)
        except (ValueError, TypeError):  # a damaged file: the question is asked again
            return None

    def put(self, body: dict, reply: Reply) -> None:
        fields = ("text", "tokens_in", "tokens_out", "refused", "error", "url")
        self.run.write_text(f"verdicts/{self._name(body)}", json.dumps({k: getattr(reply, k) for k in fields}))
        self.names.add(self._name(body))

    def _name(self, body: dict) -> str:
        return f"{self.mark}{_hash(body)}.json"


def _identity(model: str) -> str:
    """Returns the model's name, with the identity of its weights if the name is a run or model folder on this disk."""
    from lib.models import locate

    try:
        return f"{model} {locate.locate_for('judge.model', model)[1]}" if os.path.isdir(model) else model
    except ValueError:  # a folder that happens to have that name
        return model


def _hash(asked) -> str:
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]
