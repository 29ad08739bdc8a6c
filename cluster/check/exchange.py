"""The job of `check --workers 2`: two boxes sum a tensor with the backend and over the network of a training job.

Runs in the cluster without the rest of the project (`python exchange.py gpu|cpu`); prints EXCHANGED and a JSON object.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

NUMBERS = 4_000_000
"""float32 numbers in the tensor, 16 MB."""
LIMIT_S = 120.0


class Rank:
    def place(self) -> tuple[str, str, int]:
        """Returns (node, its address, a free port there)."""
        import ray

        with socket.socket() as s:
            s.bind(("", 0))  # in the mesh, portpin.c assigns a forwarded port
            return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), s.getsockname()[1]

    def exchange(self, rank: int, address: str, port: int, backend: str) -> float:
        """Sums both ranks' tensors and returns the seconds it took. Raises ValueError if the sum is wrong."""
        import torch
        import torch.distributed as dist

        os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
        dist.init_process_group(backend, rank=rank, world_size=2)
        device = "cuda" if backend == "nccl" else "cpu"
        seconds = []
        for _ in range(2):  # the first round includes the connection
            tensor = torch.full((NUMBERS,), rank + 1.0, device=device)
            began = time.perf_counter()
            dist.all_reduce(tensor)
            wrong = int((tensor != 3).sum())
            seconds.append(time.perf_counter() - began)
            if wrong:
                raise ValueError(f"{wrong} of {NUMBERS} sums are wrong")
        dist.destroy_process_group()
        return seconds[-1]


def main(device: str) -> None:
    import ray

    ray.init(logging_level="ERROR", log_to_driver=False)
    # All of a node's GPUs or CPUs, so that each rank gets its own box.
    options = {"num_gpus": 1} if device == "gpu" else {"num_cpus": 2}
    ranks = [ray.remote(**options)(Rank).remote() for _ in range(2)]
    places = ray.get([r.place.remote() for r in ranks])
    nodes = {node for node, _, _ in places}
    assert len(nodes) == 2, f"both ranks are on {nodes}"
    print("JOINED 2", flush=True)
    backend = "nccl" if device == "gpu" else "gloo"
    _, address, port = places[0]
    try:
        sums = [r.exchange.remote(i, address, port, backend) for i, r in enumerate(ranks)]
        seconds = max(ray.get(sums, timeout=LIMIT_S))
    except ray.exceptions.GetTimeoutError:
        sys.exit(f"{backend} exchanged nothing within {LIMIT_S:g} s: it can't connect the two boxes over the mesh")
    print("EXCHANGED", json.dumps({"backend": backend, "mb": NUMBERS * 4 / 1e6, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
