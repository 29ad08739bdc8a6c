"""A laptop behind a router: namespaces on this machine from which only the simulator's public address can be reached."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import PATIENCE, REPO

INIT = """
mount --make-rprivate /; mount -t proc proc /proc; mount -t tmpfs tmpfs /dev/shm
for shared; do mkdir -p "$0$shared"; mount --bind "$shared" "$0$shared"; done; mount --rbind "$0"/tmp /tmp
ip link set lo up; echo up; trap : TERM; while :; do wait -n; sleep 1000 & wait $!; done
"""
_numbers = itertools.count(os.getpid() % 60000 * 4)


class Laptop:
    """A machine with its own processes, /tmp, HOME and network. `env` is added to every command's environment."""

    def __init__(self, folder: Path, public: str, env: dict[str, str], *shared: Path):
        """public: an address of this machine that the laptop can reach. shared: folders below /tmp that it sees, besides the checkout and
        its environment, which may also be there."""
        n = next(_numbers)
        self.space = f"lap{n}"
        here, there = (f"10.{100 + n // 16384 % 100}.{n // 64 % 256}.{n % 64 * 4 + i}" for i in (1, 2))
        run = lambda *c: subprocess.run(c, check=True)  # noqa: E731
        run("ip", "netns", "add", self.space)
        run("ip", "link", "add", self.space, "type", "veth", "peer", "name", "eth0", "netns", self.space)
        run("ip", "addr", "add", here, "peer", there, "dev", self.space)
        run("ip", "link", "set", self.space, "up")
        run("ip", "-n", self.space, "addr", "add", there, "peer", here, "dev", "eth0")
        run("ip", "-n", self.space, "link", "set", "eth0", "up")
        run("ip", "-n", self.space, "route", "add", public, "via", here)
        needed = [*shared, *(p for p in map(Path, (REPO, sys.prefix, sys.base_prefix)) if p.is_relative_to("/tmp"))]
        self.home = folder / "tmp/home"  # as seen from outside
        (self.home / ".ray").mkdir(parents=True)
        # As after a first job here: Ray then requires the token of joining nodes.
        (self.home / ".ray/auth_token").write_text("a" * 32)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # as in an activated environment
        self.env = {**os.environ, "HOME": "/tmp/home", "PATH": path, "PYTHONPATH": str(REPO), **env}
        self.env.pop("RAY_ADDRESS", None)
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self.space, "unshare", "--pid", "--mount", "--ipc", "--fork",
             "--kill-child", "bash", "-c", INIT, str(folder), *map(str, needed)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout.readline() == "up\n"
        [self.init] = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()

    def command(self, *command: str) -> list[str]:
        return ["nsenter", "-t", self.init, "--net", "--pid", "--mount", "--ipc", f"--wd={REPO}", *map(str, command)]

    def start(self, *command: str, **kwargs) -> subprocess.Popen:
        return subprocess.Popen(self.command(*command), env=self.env, **kwargs)

    def run(self, *command: str, seconds: float = PATIENCE) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(*command), env=self.env, capture_output=True, text=True, timeout=seconds)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        subprocess.run(["ip", "netns", "del", self.space], check=True)
