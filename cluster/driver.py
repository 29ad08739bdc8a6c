"""Whether a rented GPU's driver is new enough for the torch that is installed there: asked of offers, and of the box before Ray joins.

CUDA 13.x needs a driver that supports CUDA 13.0 (580), 12.x one that supports 12.0 (525): a minor version doesn't matter.
https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
"""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

ON_PYPI = {"torch==2.13.0": 13}
"""CUDA's major version that PyPI's wheel of torch for Linux brings. The torch here may be another build, whose metadata don't
tell: `echo torch==2.13.0 | uv pip compile - --python-platform linux` lists nvidia-cudnn-cu13 (tests/cluster/test_driver.py)."""

OLDER = "cu129"
"""A build of the same torch for drivers from 525 on."""

PROBE = Path(__file__).with_name("probe.py")
"""Runs on the box, by the Python that Ray will run by there; prints a Report."""


def needed(torch: str | None = None) -> float:
    """The CUDA that a driver has to support for this build of torch (cu129); None: PyPI's. Raises ValueError."""
    if torch is None:
        [pinned] = [r for r in requires("shoestring") if Requirement(r).name == "torch" and "extra ==" not in r]
        return float(ON_PYPI[pinned])
    if not isinstance(torch, str) or not (found := re.fullmatch(r"cu(\d\d)\d", torch)):
        raise ValueError(
            f"provider.torch must be a build of torch for a CUDA, such as {OLDER} for older drivers, but is {torch!r}."
        )
    return float(found[1])


def complaint(report: dict, gpus: int, torch: str | None) -> str | None:
    """Why torch can't use so many GPUs of a box, with the remedy; None: it can. report: what PROBE printed.

    A simulated box has no GPU to try, and so its torch isn't asked, only its driver.
    """
    if "smi_error" in report:
        return f"it was rented with a GPU, and nvidia-smi finds no driver in it: {report['smi_error']}"
    need = report["torch_cuda"] and float(report["torch_cuda"].split(".")[0])
    if need is None and not report["simulated"]:
        return (
            f"its torch {report['torch']} was built without CUDA. Take an image without torch, as provider.image was "
            "before, or one whose torch has it"
        )
    need = need or needed(torch)
    if report["cuda"] < need:
        older = f", or take torch for older drivers (provider.torch: {OLDER})" if need > 12 else ""
        return (
            f"its driver {report['driver']} supports CUDA {report['cuda']}, and torch {report['torch']} needs CUDA {need}. "
            f"Rent newer drivers only (min_cuda: {need} in the rung){older}"
        )
    if report["gpus"] < gpus:
        return f"it was rented with {gpus} GPUs, and nvidia-smi lists {report['gpus']}"
    if report["torch_error"] and not report["simulated"]:
        return f"torch {report['torch']} can't use its GPU (driver {report['driver']}): {report['torch_error']}"
    return None
