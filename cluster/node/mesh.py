"""A network of SSH connections opened by the head, for nodes without a common one: no key on a worker, no open port on the head.

Node k has the address 127.77.0.k on every machine and listens only on ports of its own block. The head's ssh to worker k carries
traffic to k (a local forward of k's block, -L) and traffic from k to all other nodes (remote forwards, -R, of the blocks of the head
and the other workers), so workers reach each other through the head. Everything is TCP; the ports of Ray, gloo and torch are fixed
by `ray_options` and portpin.c. Only Linux has loopback addresses other than 127.0.0.1.
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from pathlib import Path

from cluster.node.key_folder import Folder

log = logging.getLogger(__name__)

HEAD = 1
"""The head's node number; workers have 2 and above."""
LAST = 254
"""The highest node number that has an address and ports."""
MOST_WORKERS = (LAST - HEAD - 4) // 2
"""The largest number of workers for which slots() is at most LAST."""
GCS_PORT = 6379
BOX = ".shoestring/mesh"
"""The folder on a worker, relative to its home, that mesh.sh sets up."""
FILES = ("mesh.sh", "portpin.c")

FIXED = (
    "node-manager-port",
    "object-manager-port",
    "dashboard-agent-listen-port",
    "runtime-env-agent-port",
)
"""Options of `ray start`. Two others, dashboard-agent-grpc-port and metrics-export-port, are left to portpin.c: the raylet waits up to
15 s for each port that its dashboard agent chooses, and aborts after that (ray-project/ray#65983). With these two given, a slow host's
agent would have to start within one such wait; now it has three, within the 30 s that `ray start` allows."""
WORKERS, PINNED = range(10, 50), range(50, 74)
"""Offsets in a node's block for Ray's worker processes, and for sockets bound to port 0 (portpin.c)."""
WAIT = f"for i in $(seq 150); do (: < /dev/tcp/127.77.0.1/{GCS_PORT}) 2> /dev/null && exit 0; sleep 0.2; done; exit 1"
"""bash command for a worker: exits with 0 once it reaches Ray's head through its tunnel, with 1 after 30 s."""


def slots(workers: int) -> int:
    """Returns the highest node number for this many simultaneous workers.

    There are more than twice as many numbers as workers, used in turn, since gRPC in Ray's head doesn't reconnect to the address of
    a dead node for up to two minutes.
    """
    return HEAD + 2 * workers + 4


def ip(k: int) -> str:
    return f"127.77.0.{k}"


def base(k: int) -> int:
    return 20000 + 100 * k


def ports(k: int) -> list[int]:
    """Returns all ports at which node k may be reached."""
    block = [base(k) + i for i in (*range(len(FIXED)), *WORKERS, *PINNED)]
    return [GCS_PORT, *block] if k == HEAD else block


def ray_options(k: int) -> list[str]:
    """Returns the options of `ray start` for node k."""
    fixed = [f"--{name}={base(k) + i}" for i, name in enumerate(FIXED)]
    return [f"--node-ip-address={ip(k)}", *fixed, f"--worker-port-list={','.join(str(base(k) + i) for i in WORKERS)}"]


def environment(k: int, shim: str) -> dict[str, str]:
    """Returns environment variables for the processes of node k. shim: path of portpin.so there."""
    pinned = f"{base(k) + PINNED[0]}-{base(k) + PINNED[-1]}"
    # By default NCCL ignores the loopback interface.
    return {"LD_PRELOAD": shim, "MESH_IP": ip(k), "MESH_PORTS": pinned, "NCCL_SOCKET_IFNAME": "lo"}


def files() -> dict[str, Path]:
    """Returns {name: path} of the files of this package to copy into BOX."""
    return {name: Path(__file__).with_name(name) for name in FILES}


def build_shim(folder: Path) -> str:
    """Compiles portpin.so for this machine into `folder` and returns its path."""
    target = folder / "portpin.so"
    source = files()["portpin.c"]
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        new = target.with_suffix(".new")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(new), str(source), "-ldl"], check=True)
        new.replace(target)
    return str(target)


def ssh_config(folder: Folder, k: int, slots: int, rental: str, host: str, port: int) -> str:
    """Returns the configuration for `ssh mesh`: a connection to the node's sshd, and through it to the project's own (mesh.sh), with
    all forwards of worker k.

    slots: the highest node number.
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
        # This runs inside a connection whose host key was checked.
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
    """The head's connection to worker k, reopened whenever it ends, until `close`. Ends with this process."""

    def __init__(self, folder: Folder, k: int, slots: int, rental: str, host: str, port: int):
        self.k, self.rental, self.address = k, rental, (host, port)
        self._config = folder.path / f"mesh-{k}.conf"
        self._config.write_text(ssh_config(folder, k, slots, rental, host, port))
        self._log = folder.path / f"mesh-{k}.log"
        self._closed = threading.Event()
        self._ssh: subprocess.Popen | None = None
        self.dialled = 0
        """Number of connections opened so far."""
        self._thread = threading.Thread(target=self._run, name=f"mesh-{k}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        # The kernel terminates ssh when this thread ends, however the process ends.
        command = ["setpriv", "--pdeathsig", "TERM", "ssh", "-N", "-T", "-F", str(self._config), "mesh"]
        while not self._closed.is_set():
            began = time.monotonic()
            with self._log.open("ab") as output:
                self._ssh = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
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
        """Closes the connection; its addresses are free again when this returns."""
        self._closed.set()
        if self._ssh:
            self._ssh.terminate()
        self._thread.join(timeout=10)
