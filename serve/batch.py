"""Continuous batching in one thread: requests join the batch when they arrive and leave it when they are answered.

A request's prompt is read alone, in one pass; its tokens are then generated in the same passes as those of other requests. Apart
from rounding (lib/generation/transformers_generator.py), its answer doesn't depend on them, and it has its own random generator.

Shapes: B rows of the batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from lib.generation.kv_cache import Cached
from lib.generation.sampling import Sampling, choose, generator, penalise, race


@dataclass(eq=False)
class Row:
    """A request. put(token) is called for every generated token, then done(None), or done(error) on failure."""

    prompt: list[int]
    sampling: Sampling
    ends: frozenset[int]
    """Tokens that end the answer."""
    put: Callable[[int], None]
    done: Callable[[Exception | None], None]
    bias: dict[int, float] = field(default_factory=dict)
    """{token: number added to its logit}"""
    gone: bool = False
    """The client has disconnected; may be set from any thread."""
    tokens: list[int] = field(default_factory=list)
    dice: object = None


class Batch:
    """model: a causal language model; text(tokens): decodes them; most: rows at a time; turn: held while the model runs."""

    def __init__(self, model, text: Callable[[list[int]], str], device: str, most: int, turn: threading.Lock):
        self.model, self.text, self.device, self.most, self.turn = model, text, device, most, turn
        self.coming: queue.SimpleQueue[Row] = queue.SimpleQueue()
        self.rows: list[Row] = []
        self.read: Cached | None = None
        """Cached keys and values of the rows: of every token but each row's last."""
        threading.Thread(target=self._run, daemon=True).start()

    def add(self, row: Row) -> None:
        self.coming.put(row)

    def _run(self) -> None:
        import torch

        while True:
            coming = [] if self.rows else [self.coming.get()]
            while len(self.rows) + len(coming) < self.most and not self.coming.empty():
                coming.append(self.coming.get())
            with self.turn, torch.inference_mode():
                for row in coming:
                    self._answer([row], lambda row=row: self._join(row))
                    self.most = self.most if self.read is None or self.read.joinable() else 1
                if self.rows:
                    self._answer(self.rows, self._step)

    def _answer(self, rows: list[Row], write: Callable[[], None]) -> None:
        """Calls write(). If it fails, `rows` leave the batch with its error."""
        try:
            write()
        except Exception as e:  # any kind, such as out of memory: the next request may be smaller
            self._keep([r for r in self.rows if r not in rows])
            for row in rows:
                _tell(row.done, e)

    def _join(self, row: Row) -> None:
        if row.gone:
            return
        row.dice = generator(row.sampling, row.prompt, 0, self.device) if row.sampling.temperature else None
        read = Cached(self.model, [row.prompt], 0, self.device)
        if not self._write([row], read.logits_BV):
            return
        if self.read is None:
            self.read = read
        else:
            self.read.join(read)
        self.rows.append(row)

    def _step(self) -> None:
        """Generates one token of each row."""
        import torch

        last_B1 = torch.tensor([[r.tokens[-1]] for r in self.rows], device=self.device)
        self.read.feed(last_B1, last=1)
        self._keep(self._write(self.rows, self.read.logits_BV))

    def _write(self, rows: list[Row], logits_BV) -> list[Row]:
        """Chooses the next token of each row; returns the rows that continue."""
        alike = defaultdict(list)
        for i, row in enumerate(rows):
            alike[dataclasses.replace(row.sampling, seed=0, max_new_tokens=0, stop=())].append(i)
        for how, group in alike.items():
            some_BV = logits_BV if len(group) == len(rows) else logits_BV[group]
            some_BV = self._bent([rows[i] for i in group], some_BV)
            numbers_BV = (
                race([rows[i].dice for i in group], some_BV.shape[-1], self.device) if how.temperature else None
            )
            for i, token in zip(group, choose(some_BV, how, numbers_BV).tolist(), strict=True):
                rows[i].tokens.append(token)
        return [row for row in rows if self._goes_on(row)]

    def _bent(self, rows: list[Row], logits_BV):
        """Returns the logits with each row's bias and penalty applied."""
        import torch

        if any(row.bias for row in rows):
            logits_BV = logits_BV.float().clone()
            for row_V, row in zip(logits_BV, rows, strict=True):
                row_V[list(row.bias)] += torch.tensor(list(row.bias.values()), device=self.device)
        if (penalty := rows[0].sampling.repetition_penalty) != 1:  # the same for all these rows
            logits_BV = penalise(logits_BV, [row.prompt + row.tokens for row in rows], penalty)
        return logits_BV

    def _goes_on(self, row: Row) -> bool:
        """Delivers the row's newest token, and done(None) if that token ends the answer. Returns whether the row continues."""
        if row.gone or not _tell(row.put, row.tokens[-1]):
            return False
        ended = len(row.tokens) >= row.sampling.max_new_tokens or row.tokens[-1] in row.ends
        if stops := row.sampling.stop:
            # 8 tokens extra, since a token may be only a part of a character.
            tail = self.text(row.tokens[-(8 + max(map(len, stops))) :])
            ended = ended or any(s in tail for s in stops)
        if ended:
            _tell(row.done, None)
        return not ended

    def _keep(self, rows: list[Row]) -> None:
        import torch

        if len(rows) == len(self.rows):
            return
        if rows:
            self.read.keep(torch.tensor([self.rows.index(r) for r in rows], device=self.device))
            self.read.trim()
        else:
            self.read = None
        self.rows = rows


def _tell(callback: Callable, value) -> bool:
    """Calls the callback. Returns False if its event loop has ended."""
    try:
        callback(value)
    except RuntimeError:
        return False
    return True
