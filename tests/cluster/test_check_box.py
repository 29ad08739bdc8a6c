"""cluster/check/box.py: the checks of a box, run on this machine; each defect is reported."""

import sys
from pathlib import Path

import pytest

from cluster.check.box import Box
from cluster.check.pipeline import Failed
from tests.cluster import e2e

HERE = Box(["bash", "-c"])
"""This machine instead of a box behind SSH."""


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("cuda", "needed", "passes"),
    [("13.0", 13.0, True), ("12.8", 13.0, False), ("12.8", 12.0, True), ("13.1", None, True)],
)
def test_a_driver_that_is_too_old_is_named(tmp_path, monkeypatch, cuda, needed, passes):
    program(tmp_path, "nvidia-smi", f"echo '| NVIDIA-SMI 570.86   Driver Version: 570.86.15   CUDA Version: {cuda}  |'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if passes:
        assert f"driver 570.86.15, CUDA {cuda}" in HERE.driver(needed)
    else:
        with pytest.raises(
            Failed, match=r"driver 570.86.15, CUDA 12.8: the torch that will be installed needs CUDA 13"
        ):
            HERE.driver(needed)


def test_a_box_without_a_driver_is_named(tmp_path, monkeypatch):
    program(tmp_path, "nvidia-smi", "echo no devices were found >&2; exit 6")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(Failed, match="no devices were found"):
        HERE.driver(13.0)


def test_a_disk_that_is_too_small_or_too_slow_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("cluster.check.box.LEAST_FREE_GB", 1e6)
    with pytest.raises(Failed, match=r"GB are free, and set-up needs 1e\+06"):
        HERE.disk()
    monkeypatch.setattr("cluster.check.box.LEAST_FREE_GB", 0.0)
    monkeypatch.setattr("cluster.check.box.LEAST_DISK_MB_S", 1e6)
    with pytest.raises(Failed, match="it writes"):
        HERE.disk()
    monkeypatch.setattr("cluster.check.box.LEAST_DISK_MB_S", 0.0)
    assert "GB free, writes" in HERE.disk()
    assert not (tmp_path / ".shoestring-check").exists()


@e2e.NAMESPACES
def test_a_disk_that_is_full_is_named(tmp_path):
    mount = f'mount -t tmpfs -o size=8m none {tmp_path} && export HOME={tmp_path} && eval "$0"'
    with pytest.raises(Failed, match="No space left on device"):
        Box(["unshare", "--mount", "bash", "-c", mount]).disk()


def test_a_slow_download_or_none_is_named(sim, monkeypatch):
    assert HERE.download(f"{sim.vast_url}/_sim/download").endswith("MB/s")
    monkeypatch.setattr("cluster.check.box.LEAST_DOWNLOAD_MB_S", 1e6)
    with pytest.raises(Failed, match="and set-up fetches gigabytes"):
        HERE.download(f"{sim.vast_url}/_sim/download")
    with pytest.raises(Failed, match="404"):
        HERE.download(f"{sim.vast_url}/none")


def test_a_torch_without_a_gpu_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # also if this machine has a GPU
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".bash_profile").write_text(f"export PATH={Path(sys.executable).parent}:$PATH\n")
    with pytest.raises(Failed, match=r"CUDA|NVIDIA"):
        HERE.torch()
