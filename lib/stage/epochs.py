"""Epochs of whole batches: if the number of rows is not a multiple of scale.global_batch, the last step of an epoch is filled up with
the rows that the epoch began with, in its shuffled order.

Otherwise accelerate would fill up the last micro-batch of the workers, with different rows for 1, 2 and 4 workers. With whole
batches it has nothing to fill up, and a step has the same rows on any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import TYPE_CHECKING, Any, Protocol

from torch.utils.data import DataLoader, Sampler

if TYPE_CHECKING:
    from transformers import Trainer


class Indices(Protocol):
    """A torch Sampler with a length, or a range."""

    def __iter__(self) -> Iterator[int]: ...

    def __len__(self) -> int: ...


class Filled(Sampler[int]):
    """Yields the indices of `sampler`, then its first ones again until their number is a multiple of `batch`.

    drop: leave out the last indices instead, unless that would leave none. by_epoch: add epoch × number of rows to each index, for a data
    set whose rows differ between epochs. It isn't told the epoch otherwise: accelerate passes it on to the sampler only.
    """

    def __init__(self, sampler: Indices, batch: int, drop: bool = False, by_epoch: bool = False):
        self.sampler, self.batch, self.by_epoch, self.epoch = sampler, batch, by_epoch, 0
        rows = len(sampler)
        self.drop = drop and rows >= batch
        self.length = rows // batch * batch if self.drop else -(-rows // batch) * batch

    def __iter__(self) -> Iterator[int]:
        indices = list(self.sampler)
        first = self.epoch * len(indices) if self.by_epoch else 0
        for i in range(self.length):
            yield first + indices[i % len(indices)]

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


def examples(trainer: Trainer) -> int:
    """Returns the number of training examples."""
    assert isinstance(trainer.train_dataset, Sized), "no stage streams its rows"
    return len(trainer.train_dataset)


def fill(trainer: Trainer, batch: int) -> int:
    """Makes each epoch of the trainer consist of whole batches of `batch` examples, over all workers.

    Returns how many examples an epoch repeats; negative: how many it leaves out, with train.dataloader_drop_last.
    """
    loader, groups = trainer.get_train_dataloader, getattr(trainer, "group_sampler", None)

    def filled() -> DataLoader:
        found = loader()
        outer: Any = found.batch_sampler
        inner = outer
        while hasattr(inner, "batch_sampler"):  # unwraps samplers that hold one worker's share of another sampler
            inner = inner.batch_sampler
        by_epoch = getattr(trainer.train_dataset, "by_epoch", False)
        inner.sampler = groups or Filled(inner.sampler, batch, trainer.args.dataloader_drop_last, by_epoch)
        # Of several workers that resume within an epoch, accelerate's samplers are nested too deep for the Trainer to reach this one.
        outer.set_epoch = inner.sampler.set_epoch
        return found

    trainer.get_train_dataloader = filled  # type: ignore[method-assign]  # the Trainer has no other hook
    rows = examples(trainer)
    if groups:
        return groups.asked - rows
    return len(Filled(range(rows), batch, trainer.args.dataloader_drop_last)) - rows
