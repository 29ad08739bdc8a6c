"""A batch that requests join when they come and leave when they are answered, by one thread.

A request is read by itself, in one pass, and then writes its tokens in the same passes as the others. What it is answered
doesn't depend on them but for rounding (lib/transformers_generator.py), and its draws are its own.

Shapes: B rows of the batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from lib.cache import Cached
from lib.sampling import Sampling, choose, generator, penalise, race


@dataclass(eq=False)
class Row:
    """A request. put(token) is called as its tokens are written, done(None) after the last one, or done(error)."""

    prompt: list[int]
    sampling: Sampling
    ends: frozenset[int]
    """Tokens that end the answer."""
    put: Callable[[int], None]
    done: Callable[[Exception | None], None]
    bias: dict[int, float] = field(default_factory=dict)
    """{token: what is added to its logit}"""
    gone: bool = False
    """Nobody waits for it any more; set from any thread."""
    tokens: list[int] = field(default_factory=list)
    dice: object = None


class Batch:
    """model: a causal language model; text(tokens): what they say; most: rows at a time."""

    def __init__(self, model, text: Callable[[list[int]], str], device: str, most: int, turn: threading.Lock):
        self.model, self.text, self.device, self.most, self.turn = model, text, device, most, turn
        self.coming: queue.SimpleQueue[Row] = queue.SimpleQueue()
        self.rows: list[Row] = []
        self.read: Cached | None = None
        """What the rows have read; all but the last token of each."""
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
        """write(); its failure is that of `rows`, which leave."""
        try:
            write()
        except Exception as e:  # of any kind, such as no memory left: the next request may be smaller
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
        """Writes one token of each row."""
        import torch

        last_B1 = torch.tensor([[r.tokens[-1]] for r in self.rows], device=self.device)
        self.read.feed(last_B1, last=1)
        self._keep(self._write(self.rows, self.read.logits_BV))

    def _write(self, rows: list[Row], logits_BV) -> list[Row]:
        """Takes the next token of each row; returns those that go on."""
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
        """Logits with each row's bias and penalty."""
        import torch

        if any(row.bias for row in rows):
            logits_BV = logits_BV.float().clone()
            for row_V, row in zip(logits_BV, rows, strict=True):
                row_V[list(row.bias)] += torch.tensor(list(row.bias.values()), device=self.device)
        if (penalty := rows[0].sampling.repetition_penalty) != 1:  # of rows that are chosen for alike
            logits_BV = penalise(logits_BV, [row.prompt + row.tokens for row in rows], penalty)
        return logits_BV

    def _goes_on(self, row: Row) -> bool:
        """Hands over the row's last token, and its end where that was the last one."""
        if row.gone or not _tell(row.put, row.tokens[-1]):
            return False
        ended = len(row.tokens) >= row.sampling.max_new_tokens or row.tokens[-1] in row.ends
        if stops := row.sampling.stop:
            tail = self.text(
                row.tokens[-(8 + max(map(len, stops))) :]
            )  # a token has a character or more, but for parts of one
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


def _tell(whom: Callable, what) -> bool:
    """Whether somebody still listens: an event loop that ended takes nothing more."""
    try:
        whom(what)
    except RuntimeError:
        return False
    return True
