"""Whether a rented GPU's driver is new enough for the installed torch: checked in offers, and on the node before it joins Ray.

CUDA 13.x needs a driver that supports CUDA 13.0 (580), 12.x one that supports 12.0 (525): a minor version doesn't matter.
https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
"""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

ON_PYPI = {"torch==2.13.0": 13}
"""Requirement → CUDA major version of PyPI's torch wheel for Linux. Not read from the torch installed here, which may be another
build: `echo torch==2.13.0 | uv pip compile - --python-platform linux` lists nvidia-cudnn-cu13 (tests/cluster/test_set_up.py)."""

OLDER = "cu129"
"""A build of the same torch for drivers from 525 on."""

PROBE = Path(__file__).with_name("probe.py")
"""Runs on the node, with the Python that Ray will use there; prints a report as JSON."""


def needed(torch: str | None = None) -> float:
    """Returns the CUDA version that a driver must support for this build of torch (such as cu129; None: PyPI's). Raises ValueError."""
    if torch is None:
        [pinned] = [r for r in requires("shoestring") if Requirement(r).name == "torch" and "extra ==" not in r]
        return float(ON_PYPI[pinned])
    if not isinstance(torch, str) or not (found := re.fullmatch(r"cu(\d\d)\d", torch)):
        raise ValueError(
            f"provider.torch must be a CUDA build of torch, such as {OLDER} for older drivers, but is {torch!r}."
        )
    return float(found[1])


def complaint(report: dict, gpus: int, torch: str | None) -> str | None:
    """Returns why torch can't use `gpus` GPUs of a node, with the remedy; None if it can. report: the output of PROBE.

    A simulated node has no GPU, so only its driver is checked, not its torch.
    """
    if "smi_error" in report:
        return f"it was rented with a GPU, but nvidia-smi finds no driver in it: {report['smi_error']}"
    need = report["torch_cuda"] and float(report["torch_cuda"].split(".")[0])
    if need is None and not report["simulated"]:
        return (
            f"its torch {report['torch']} was built without CUDA. Set provider.image to an image without torch, such as "
            "that of cluster/vast.yaml, or to one whose torch has CUDA"
        )
    need = need or needed(torch)
    if report["cuda"] < need:
        older = f", or use torch for older drivers (provider.torch: {OLDER})" if need > 12 else ""
        return (
            f"its driver {report['driver']} supports CUDA {report['cuda']}, and torch {report['torch']} needs CUDA {need}. "
            f"Rent only hosts with newer drivers (min_cuda: {need} in the rung){older}"
        )
    if report["gpus"] < gpus:
        return f"it was rented with {gpus} GPUs, but nvidia-smi lists {report['gpus']}"
    if report["torch_error"] and not report["simulated"]:
        return f"torch {report['torch']} can't use its GPU (driver {report['driver']}): {report['torch_error']}"
    return None
