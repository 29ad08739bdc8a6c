"""The checks of a rented box, run over the same SSH connection that the head uses."""

from __future__ import annotations

import json
import shlex
import subprocess

from cluster.check.pipeline import Failed
from cluster.money.rental_record import Entry
from cluster.node import probe
from cluster.node.key_folder import Folder
from cluster.node.link_probe import Link, measure

MARKS = "/tmp/shoestring/check"
"""A folder on the box: the file `go` lets the set-up begin (see HOLD), `ready` is created after it."""
HOLD = f"for i in $(seq 600); do [ -e {MARKS}/go ] && break; sleep 0.5; done"
"""The cluster's first command on a box: delays the set-up by up to 5 minutes while disk and download are measured."""
READY = f"mkdir -p {MARKS} && touch {MARKS}/ready"
"""The cluster's last set-up command on a box."""

LEAST_FREE_GB = 15.0
"""Space for torch with CUDA's libraries, Ray and the package manager's cache."""
LEAST_DISK_MB_S = 20.0
"""Below this speed, unpacking them takes longer than ten minutes."""
LEAST_DOWNLOAD_MB_S = 5.0
"""Below this speed, downloading them takes longer than ten minutes."""
WRITTEN_MB = 256

DISK = f"""
set -e
df -Pk "$HOME" | awk 'NR == 2 {{print $4}}'
file="$HOME/.shoestring-check"; trap 'rm -f "$file"' EXIT
began=$(date +%s%N); dd if=/dev/zero of="$file" bs=1M count={WRITTEN_MB} conv=fdatasync status=none; ended=$(date +%s%N)
echo $(( (ended - began) / 1000 ))
"""
"""Prints the free kB, then the microseconds that writing WRITTEN_MB took."""

DOWNLOAD = """
import json, sys, time, urllib.request
url, most, limit = sys.argv[1], 100_000_000, 10.0
if not url:  # what every set-up fetches from the same place: the largest wheel of torch
    with urllib.request.urlopen("https://pypi.org/pypi/torch/json", timeout=20) as answer:
        url = max(json.load(answer)["urls"], key=lambda file: file["size"])["url"]
count, began = 0, time.monotonic()
with urllib.request.urlopen(urllib.request.Request(url, headers={"User-Agent": "shoestring"}), timeout=20) as answer:
    while count < most and time.monotonic() - began < limit and (part := answer.read(1 << 18)):
        count += len(part)
print(count, time.monotonic() - began)
"""
"""Python script: downloads for 10 s at most and prints the bytes and the seconds."""

TORCH = """
import json, time, torch
x = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
y = x @ x
off = (y[:8].float().cpu() - x[:8].float().cpu() @ x.float().cpu()).abs().max().item()
torch.cuda.synchronize(); began = time.perf_counter()
for _ in range(20): y = x @ x
torch.cuda.synchronize()
tflops = 20 * 2 * 4096**3 / (time.perf_counter() - began) / 1e12
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpu": torch.cuda.get_device_name(), "off": off, "tflops": tflops}))
"""

STORE = """
import os, sys, json
place, environment = json.loads(sys.stdin.readline())
os.environ |= environment
import fsspec
fs, path = fsspec.core.url_to_fs(place)
fs.pipe_file(path, b"shoestring")
assert fs.cat_file(path) == b"shoestring", "it holds something else than was written"
fs.rm_file(path)
"""


class Box:
    """A rented box. shell: a command that runs its last argument as a shell command on the box."""

    def __init__(self, shell: list[str]):
        self.shell = shell

    @classmethod
    def of(cls, folder: Folder, entry: Entry) -> Box:
        """Returns the box of a running rental."""
        alive = {"ServerAliveInterval": "3", "ServerAliveCountMax": "3"}
        return cls(folder.ssh(entry.node, entry.rental.ssh, BatchMode="yes", ConnectTimeout="8", **alive))

    def run(self, command: str, seconds: float, stdin: str = "") -> str:
        """Runs the command and returns its stdout. Raises Failed with its last line of errors, or after `seconds`."""
        try:
            done = subprocess.run([*self.shell, command], input=stdin, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"no answer within {seconds:.0f} s") from None
        if done.returncode:
            lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if "job control" not in line]
            raise Failed(lines[-1] if lines else f"exit code {done.returncode}")
        return done.stdout

    def python(self, script: str, seconds: float, *arguments: str, stdin: str = "") -> str:
        """Runs a Python script in the shell that Ray's commands use (bash --login -i), where set-up's Python comes first in PATH."""
        command = shlex.join(["python3", "-c", script, *arguments])
        return self.run(shlex.join(["bash", "--login", "-i", "-c", command]), seconds, stdin)

    # ---- the checks, one per step

    def driver(self, needed: float | None) -> str:
        """Checks that the driver supports the CUDA version `needed`."""
        found = probe.driver(self.run("nvidia-smi", 60))
        if not found:
            raise Failed("nvidia-smi reports no driver: is the GPU passed through to the container?")
        text = f"driver {found['driver']}, CUDA {found['cuda']:.1f}"
        if needed and found["cuda"] < needed:
            raise Failed(f"{text}: the torch that will be installed needs CUDA {needed:g}")
        return text + (f" (torch needs {needed:g})" if needed else "")

    def disk(self) -> str:
        free, microseconds = map(int, self.run(DISK, 120).split())
        gb, mb_s = free * 1024 / 1e9, WRITTEN_MB * 1.048576 / (microseconds / 1e6)
        if gb < LEAST_FREE_GB:
            raise Failed(f"{gb:.1f} GB are free, and set-up needs {LEAST_FREE_GB:g}. Ask for more (disk_gb)")
        if mb_s < LEAST_DISK_MB_S:
            raise Failed(f"it writes {mb_s:.0f} MB/s, and set-up needs {LEAST_DISK_MB_S:g}")
        return f"{gb:.0f} GB free, writes {mb_s:.0f} MB/s"

    def link(self) -> Link:
        try:
            return measure(self.shell)
        except OSError as e:
            raise Failed(str(e)) from None

    def download(self, url: str | None) -> str:
        count, seconds = self.run(shlex.join(["python3", "-c", DOWNLOAD, url or ""]), 90).split()
        mb_s = int(count) / 1e6 / float(seconds)
        if mb_s < LEAST_DOWNLOAD_MB_S:
            raise Failed(f"{mb_s:.1f} MB/s, and set-up fetches gigabytes: {LEAST_DOWNLOAD_MB_S:g} are needed")
        return f"{mb_s:.0f} MB/s"

    def torch(self) -> str:
        found = json.loads(self.python(TORCH, 180).strip().splitlines()[-1])
        if not found["off"] < 1.0:  # the entries are sums of 4,096 float16 products, of the order of 64
            raise Failed(f"matrix products are wrong by {found['off']:g} on {found['gpu']}")
        return (
            f"torch {found['torch']} (CUDA {found['cuda']}) on {found['gpu']}: {found['tflops']:.0f} TFLOPS in float16"
        )

    def store(self, place: str, environment: dict[str, str]) -> str:
        """Writes, reads and removes a file. Credentials are sent on stdin, so that no command line contains them."""
        self.python(STORE, 120, stdin=json.dumps([place, environment]) + "\n")
        return "written, read and removed"
