"""nvidia-smi of a box: prints the machine's driver in the real program's format, as far as a set-up reads it. There is no GPU."""

from __future__ import annotations

from cluster.sim.rental import Machine, Order

DRIVERS = {
    11.8: "520.61.05",
    12.2: "535.183.01",
    12.4: "550.127.05",
    12.6: "560.35.05",
    12.8: "570.86.15",
    13.0: "580.65.06",
}
"""{CUDA version: its first driver, or one of that branch}: https://docs.nvidia.com/cuda/cuda-toolkit-release-notes, table 3."""


def program(machine: Machine, order: Order) -> str:
    """Returns the shell script. order.extra["driver_cuda"]: CUDA version of a driver older than the market claims."""
    cuda = order.extra.get("driver_cuda", machine.cuda)
    driver = DRIVERS[max((known for known in DRIVERS if known <= cuda), default=min(DRIVERS))]
    gpu = machine.gpu if machine.gpu.startswith("NVIDIA") else f"NVIDIA GeForce {machine.gpu}"
    listed = [f"GPU {i}: {gpu} (UUID: GPU-{machine.id:08x}-0000-4000-8000-{i:012x})" for i in range(order.count)]
    head = f"NVIDIA-SMI {driver:<22} Driver Version: {driver:<14} CUDA Version: {cuda:<9}"
    shown = ["+" + "-" * 89 + "+", f"| {head:<87} |", "+" + "-" * 89 + "+"]
    return "\n".join(
        [
            "#!/bin/sh",
            'case "${1:-}" in',
            "-L) cat << 'END' ;;",
            *listed,
            "END",
            "*) cat << 'END' ;;",
            *shown,
            "END",
            "esac",
            "",
        ]
    )
