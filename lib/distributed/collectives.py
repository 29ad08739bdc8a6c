"""torch.distributed collectives that also work in a single process without a process group."""

from __future__ import annotations


def share() -> tuple[int, int]:
    """Returns (rank, number of workers)."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def barrier() -> None:
    """Waits for all workers."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
