"""The language model head on the CPU: only where a loss is taken.

TRL projects hidden states (N, H) onto the vocabulary (N, V). With Triton it takes only the N positions that have a
label; elsewhere all of them, since a compiler for fixed shapes would start anew at every other N (trl/trainer/utils.py,
add_fused_lm_head). PyTorch on a CPU has no such compiler, and prompts are two thirds of a usual row: with SmolLM2-135M
(V = 49,152) that is a sixth of a training step. The loss is the same sum over the same positions.
"""


def project_labelled_only() -> None:
    """For the TRL trainers of this process. Without effect in a TRL that asks another way (tests/test_head.py says so)."""
    from trl.trainer import utils

    utils._use_triton = lambda device: device.type in ("cpu", "cuda", "xpu")
