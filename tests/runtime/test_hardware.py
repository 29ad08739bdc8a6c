"""lib/runtime/hardware.py: the share of the machine that is ours, also in a container."""

import ast
import os
import shutil
import subprocess
import sys

import pytest

from lib.runtime import hardware

NVML = """
int nvmlInit_v2(void) { return INIT; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return COUNT; }
int nvmlShutdown(void) { return 0; }
"""


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """Writes a file of /sys/fs/cgroup; the machine has 8 cores."""
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)

    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")

    return write


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "350000 100000"}, 3),
        ({"cpu.max": "50000 100000"}, 0),
        ({"cpu.max": "6400000 100000"}, 64),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpuset/cpuset.cpus": "0-3,6"}, 5),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000", "cpuset/cpuset.cpus": "0-3"}, 2),
    ],
)
def test_cores(cgroup, files, cores):
    """The numbers are Ray 2.60's for these files, even the odd ones: 0 for half a core, 64 on a machine with 8."""
    for name, text in files.items():
        cgroup(name, text)
    assert hardware.local_cpus() == cores


def test_cores_where_ray_is_told_to_count_the_machines(cgroup, monkeypatch):
    cgroup("cpu.max", "200000 100000")
    monkeypatch.setenv("RAY_USE_MULTIPROCESSING_CPU_COUNT", "1")
    assert hardware.local_cpus() == 8


@pytest.mark.slow
def test_this_machine_as_ray_finds_it():
    code = "import ray; ray.init('local', include_dashboard=False, log_to_driver=False); print(ray.cluster_resources())"
    env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES")}
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = ast.literal_eval(ended.stdout.splitlines()[-1])
    assert (found["CPU"], found.get("GPU", 0)) == (hardware.local_cpus(), hardware.local_gpus())


def test_memory(cgroup):
    whole = hardware.local_memory()
    assert whole == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cgroup("memory.max", "max")
    assert hardware.local_memory() == whole
    cgroup("memory.max", str(1 << 29))
    assert hardware.local_memory() == 1 << 29
    cgroup("memory/memory.limit_in_bytes", str(1 << 62))  # in cgroups v1 this means no limit
    assert hardware.local_memory() == whole


@pytest.mark.skipif(not shutil.which("cc"), reason="builds a library")
@pytest.mark.parametrize(("init", "count", "printed"), [(0, 0, "3"), (9, 0, "0"), (0, 999, "NVML error 999")])
def test_gpus_by_the_drivers_library(tmp_path, init, count, printed):
    """A driver with three GPUs, one that isn't loaded, and one that fails."""
    (tmp_path / "nvml.c").write_text(NVML)
    flags = ["-shared", "-fPIC", f"-DINIT={init}", f"-DCOUNT={count}"]
    subprocess.run(["cc", *flags, "-o", tmp_path / "libnvidia-ml.so.1", tmp_path / "nvml.c"], check=True)
    code = "from lib.runtime import hardware; print(hardware.local_gpus())"
    env = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert printed in (ended.stdout.split() or ended.stderr)
