"""Reports if a job spends much of its time exchanging gradients between machines over a slow link."""

from __future__ import annotations

import time

from transformers import TrainerCallback

from lib.runtime.logs import say

PROBE = 1 << 20
"""Number of float32 values that are summed over all workers to measure the link."""
TIMES = {"zero3": 1.5, "fsdp": 1.5}
"""{strategy that shards weights too: bytes exchanged relative to DDP} (Rajbhandari et al. 2020, section 7)."""
WARM, STEPS, AT_MOST_S = 3, 20, 60.0
"""The step time is measured after WARM steps, over STEPS steps or AT_MOST_S seconds."""
SHARE = 1 / 3
"""The link is reported as slow if the exchange takes more than this share of a step."""


class Exchange(TrainerCallback):
    """Reports a slow link once, on rank 0, if exchanging gradients takes more than SHARE of a step."""

    def __init__(self, megabytes: float, mb_per_s: float, seconds: float):
        """megabytes: size of the gradients. mb_per_s: speed of the link. seconds: duration of their exchange, per step."""
        self.megabytes, self.mb_per_s, self.seconds = megabytes, mb_per_s, seconds
        self.measured = False
        self.began: tuple[float, int] | None = None
        self.first: int | None = None

    def on_step_end(self, args, state, control, **kwargs):
        now, step = time.monotonic(), state.global_step
        self.first = self.first or step
        if step < self.first + WARM or self.measured:
            return
        self.began = self.began or (now, step)
        took, steps = now - self.began[0], step - self.began[1]
        if steps and (steps >= STEPS or took > AT_MOST_S):
            share = min(1.0, self.seconds / (took / steps))
            if share > SHARE:
                say(
                    f"slow link: about {share:.0%} of each step, which takes {took / steps:.2g} s, goes into exchanging "
                    f"{self.megabytes:.0f} MB of gradients at {self.mb_per_s:.3g} MB/s. To reduce it, place the workers on one machine, use "
                    "model.adapter: lora, or take fewer steps with a larger scale.global_batch."
                )
            self.measured = True


def callback(model, strategy: str) -> Exchange | None:
    """Measures the link between the machines and prints how long each step's exchange of gradients takes.

    Collective: every rank calls it, before training. Returns the callback on rank 0; None on other ranks or if all workers are on
    one machine.
    """
    import ray
    import torch
    import torch.distributed as dist

    if not dist.is_initialized() or (workers := dist.get_world_size()) < 2:
        return None
    nodes = [None] * workers
    dist.all_gather_object(nodes, ray.get_runtime_context().get_node_id())
    if (machines := len(set(nodes))) < 2:
        return None
    probe = torch.ones(PROBE, device=next(model.parameters()).device)
    for _ in range(2):  # the first round establishes the connections
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(probe)
        probe[0].item()  # on a GPU, all_reduce is asynchronous; this waits for the result
        took = time.perf_counter() - began
    moved = 2 * (workers - 1) / workers  # bytes sent per byte of gradients in a ring all-reduce
    mb_per_s = probe.numel() * 4 * moved / took / 1e6
    megabytes = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad) / 1e6
    seconds = megabytes * moved * TIMES.get(strategy, 1.0) / mb_per_s
    if dist.get_rank():
        return None
    say(
        f"{workers} workers on {machines} machines, {mb_per_s:.3g} MB/s between them: exchanging {megabytes:.3g} MB of gradients "
        f"takes about {seconds:.2g} s a step",
    )
    return Exchange(megabytes, mb_per_s, seconds)
