"""Epochs of whole batches: where rows don't divide scale.global_batch, the last step of an epoch is filled up with rows from that
epoch's own start, whichever they are in its order.

accelerate fills up what the workers share of a micro-batch, so that 1, 2 and 4 workers take different rows in that step. With whole
batches there is nothing left to fill, and a step holds the same rows on any number of workers.
"""

from __future__ import annotations

from torch.utils.data import Sampler


class Filled(Sampler):
    """Indices of `sampler`, then its first ones again until `batch` divides their number; with drop, fewer of them instead, where
    that leaves any."""

    def __init__(self, sampler, batch: int, drop: bool = False):
        self.sampler, self.batch = sampler, batch
        rows = len(sampler)
        self.drop = drop and rows >= batch
        self.length = rows // batch * batch if self.drop else -(-rows // batch) * batch

    def __iter__(self):
        indices = list(self.sampler)
        for i in range(self.length):
            yield indices[i % len(indices)]

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


def fill(trainer, batch: int) -> int:
    """Makes each epoch of the trainer whole batches; returns how many examples an epoch repeats (below 0: leaves
    out, as train.dataloader_drop_last asks)."""
    loader = trainer.get_train_dataloader

    def filled():
        found = loader()
        inner = found.batch_sampler
        while hasattr(inner, "batch_sampler"):  # a share of another one's batches
            inner = inner.batch_sampler
        inner.sampler = Filled(inner.sampler, batch, trainer.args.dataloader_drop_last)
        return found

    trainer.get_train_dataloader = filled
    rows = len(trainer.train_dataset)
    return len(Filled(range(rows), batch, trainer.args.dataloader_drop_last)) - rows
