"""Epochs of whole batches: if the number of rows is not a multiple of scale.global_batch, the last step of an epoch is filled up with
the rows that the epoch began with, in its shuffled order.

Otherwise accelerate would fill up the last micro-batch of the workers, with different rows for 1, 2 and 4 workers. With whole
batches it has nothing to fill up, and a step has the same rows on any number of workers.
"""

from __future__ import annotations

from torch.utils.data import Sampler


class Filled(Sampler):
    """Yields the indices of `sampler`, then its first ones again until their number is a multiple of `batch`.

    drop: leave out the last indices instead, unless that would leave none.
    """

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
    """Makes each epoch of the trainer consist of whole batches of `batch` examples, over all workers.

    Returns how many examples an epoch repeats; negative: how many it leaves out, with train.dataloader_drop_last.
    """
    loader = trainer.get_train_dataloader

    def filled():
        found = loader()
        inner = found.batch_sampler
        while hasattr(inner, "batch_sampler"):  # unwraps samplers that hold one worker's share of another sampler
            inner = inner.batch_sampler
        inner.sampler = Filled(inner.sampler, batch, trainer.args.dataloader_drop_last)
        return found

    trainer.get_train_dataloader = filled
    rows = len(trainer.train_dataset)
    return len(Filled(range(rows), batch, trainer.args.dataloader_drop_last)) - rows
