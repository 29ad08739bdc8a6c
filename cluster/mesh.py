"""A network for nodes that share none, made of the SSH connections that the head dials: no key on a worker, no port open on the head.

Node k is 127.77.0.k on every machine, and listens on ports of its own block only. The head's ssh to worker k carries what
goes to k (a local forward of k's block, -L) and, in the other direction, what k sends to anybody else (remote forwards, -R,
of the head's block and the other workers'): workers reach each other through the head. Everything is TCP; Ray, gloo and torch
are told their ports (`ray_options`, portpin.c). Loopback addresses other than 127.0.0.1 are Linux's.
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from pathlib import Path

from cluster.folder import Folder

log = logging.getLogger(__name__)

HEAD = 1
"""The head's number; workers have 2 and more."""
LAST = 254
"""The last number that has an address and ports."""
MOST_WORKERS = (LAST - HEAD - 4) // 2
"""slots(MOST_WORKERS) is the most that fits."""
GCS_PORT = 6379
BOX = ".shoestring/mesh"
"""The folder on a worker, below its home, that mesh.sh sets up."""
FILES = ("mesh.sh", "portpin.c")

FIXED = (
    "node-manager-port",
    "object-manager-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)
WORKERS, PINNED = range(10, 50), range(50, 70)
"""Offsets in a node's block: Ray's worker processes; the sockets that ask for any port (portpin.c)."""
WAIT = f"for i in $(seq 150); do (: < /dev/tcp/127.77.0.1/{GCS_PORT}) 2> /dev/null && exit 0; sleep 0.2; done; exit 1"
"""For bash on a worker: ends when it reaches Ray's head through its tunnel, with 1 if that takes more than 30 s."""


def slots(workers: int) -> int:
    """The highest number of a node, for so many workers at a time.

    Twice as many as are needed and a few: for up to two minutes, gRPC in Ray's head tries no address where the node before
    has died, so numbers are used in turn.
    """
    return HEAD + 2 * workers + 4


def ip(k: int) -> str:
    return f"127.77.0.{k}"


def base(k: int) -> int:
    return 20000 + 100 * k


def ports(k: int) -> list[int]:
    """All that node k may be reached at."""
    block = [base(k) + i for i in (*range(len(FIXED)), *WORKERS, *PINNED)]
    return [GCS_PORT, *block] if k == HEAD else block


def ray_options(k: int) -> list[str]:
    """Options of `ray start` for node k."""
    fixed = [f"--{name}={base(k) + i}" for i, name in enumerate(FIXED)]
    return [f"--node-ip-address={ip(k)}", *fixed, f"--worker-port-list={','.join(str(base(k) + i) for i in WORKERS)}"]


def environment(k: int, shim: str) -> dict[str, str]:
    """What processes of node k need; shim: path of portpin.so there."""
    pinned = f"{base(k) + PINNED[0]}-{base(k) + PINNED[-1]}"
    # By itself NCCL leaves the loopback interface out.
    return {"LD_PRELOAD": shim, "MESH_IP": ip(k), "MESH_PORTS": pinned, "NCCL_SOCKET_IFNAME": "lo"}


def files() -> dict[str, Path]:
    """{name: what of this package goes into BOX}"""
    return {name: Path(__file__).with_name(name) for name in FILES}


def build_shim(folder: Path) -> str:
    """Compiles portpin.so for this machine into `folder`; its path."""
    target = folder / "portpin.so"
    source = files()["portpin.c"]
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        new = target.with_suffix(".new")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(new), str(source), "-ldl"], check=True)
        new.replace(target)
    return str(target)


def ssh_config(folder: Folder, k: int, slots: int, rental: str, host: str, port: int) -> str:
    """For `ssh mesh`: into the box's sshd, and through it into ours (mesh.sh), with all forwards of worker k.

    slots: the highest number that a node may have.
    """
    path = folder.path / f"mesh-{k}.conf"
    alive = ["ServerAliveInterval 3", "ServerAliveCountMax 3", "ConnectTimeout 10", "BatchMode yes", "User root"]
    alive += ["Ciphers aes128-gcm@openssh.com,chacha20-poly1305@openssh.com", "Compression no"]
    outer = [
        f"HostName {host}",
        f"Port {port}",
        *(f"{key} {value}" for key, value in folder.ssh_options(rental).items()),
    ]
    inner = [
        f"ProxyCommand ssh -F {path} box {BOX}/enter",
        f"IdentityFile {folder.key}",
        "IdentitiesOnly yes",
        # Inside a connection whose host key was checked.
        "StrictHostKeyChecking no",
        "UserKnownHostsFile /dev/null",
        "LogLevel ERROR",
        "ExitOnForwardFailure yes",
        *(f"LocalForward {ip(k)}:{p} {ip(k)}:{p}" for p in ports(k)),
        *(f"RemoteForward {ip(j)}:{p} {ip(j)}:{p}" for j in range(HEAD, slots + 1) if j != k for p in ports(j)),
    ]
    blocks = [("box", outer + alive), ("mesh", inner + alive)]
    return "".join(f"Host {name}\n" + "".join(f"    {line}\n" for line in lines) for name, lines in blocks)


class Tunnel:
    """The head's connection to worker k, dialled again whenever it ends, until `close`. Ends with this process."""

    def __init__(self, folder: Folder, k: int, slots: int, rental: str, host: str, port: int):
        self.k, self.rental, self.address = k, rental, (host, port)
        self._config = folder.path / f"mesh-{k}.conf"
        self._config.write_text(ssh_config(folder, k, slots, rental, host, port))
        self._log = folder.path / f"mesh-{k}.log"
        self._closed = threading.Event()
        self._ssh: subprocess.Popen | None = None
        self.dialled = 0
        """How many times."""
        self._thread = threading.Thread(target=self._run, name=f"mesh-{k}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        # The kernel ends ssh when this thread does, whatever ends the process.
        command = ["setpriv", "--pdeathsig", "TERM", "ssh", "-N", "-T", "-F", str(self._config), "mesh"]
        while not self._closed.is_set():
            began = time.monotonic()
            with self._log.open("ab") as said:
                self._ssh = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
            self.dialled += 1
            if self._closed.is_set():
                self._ssh.terminate()
            self._ssh.wait()
            if not self._closed.is_set():
                log.warning(
                    "The tunnel to %s (node %d) ended after %.0f s.", self.rental, self.k, time.monotonic() - began
                )
            self._closed.wait(1.0)

    def close(self) -> None:
        """Its addresses are free again when this returns."""
        self._closed.set()
        if self._ssh:
            self._ssh.terminate()
        self._thread.join(timeout=10)
