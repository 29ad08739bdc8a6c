"""torch.distributed collectives that also work in a single process without a process group."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def share() -> tuple[int, int]:
    """Returns (rank, number of workers)."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def barrier() -> None:
    """Waits for all workers."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


def from_rank_0(value: T | None) -> T:
    """Returns rank 0's picklable `value` on every worker."""
    import torch.distributed as dist

    box: list[Any] = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: T) -> list[T]:
    """Returns the picklable `value` of every worker, by rank."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
