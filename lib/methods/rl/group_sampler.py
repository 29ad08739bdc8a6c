"""The order in which prompts are asked: groups of equal prompts, one for each answer, and a new order in each epoch.

TRL's RepeatSampler isn't told the epoch: a resumed run would get the first epoch's order again in the second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from torch.utils.data import Sampler


class GroupSampler(Sampler[int]):
    """Yields, for each generation, `per_step` prompts (row numbers), each `group` times in a row, and the whole `repeats` times, as TRL's
    trainer consumes it. An epoch that isn't a multiple of per_step is filled up with the prompts that it began with; drop: it leaves out
    its last ones instead."""

    def __init__(self, rows: int, per_step: int, group: int, repeats: int, seed: int, drop: bool = False):
        self.rows, self.per_step, self.group, self.repeats, self.seed = rows, per_step, group, repeats, seed
        self.epoch = 0
        kept = rows // per_step * per_step
        self.asked = kept if drop and kept else -(-rows // per_step) * per_step

    def order(self) -> list[int]:
        """Returns the rows of this epoch in the order of a hash of (seed, epoch, row)."""
        key = lambda i: hashlib.sha256(f"prompt {self.seed} {self.epoch} {i}".encode()).digest()  # noqa: E731
        shuffled = sorted(range(self.rows), key=key)
        return [shuffled[i % self.rows] for i in range(self.asked)]

    def __iter__(self) -> Iterator[int]:
        order = self.order()
        for at in range(0, len(order), self.per_step):
            for _ in range(self.repeats):
                for row in order[at : at + self.per_step]:
                    yield from [row] * self.group

    def __len__(self) -> int:
        return self.asked * self.group * self.repeats

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
