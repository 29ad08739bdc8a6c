"""A box: Linux namespaces that look like a market's container from inside. Needs root, util-linux, iproute2 and sshd.

From inside, a box is a separate host (processes, address, host name, HOME, /tmp, /run, /dev/shm, SSH host key) whose image is this
machine (its packages; read-only the running Python, its environment and this checkout, which is on PYTHONPATH). A bare box has
neither that environment nor the checkout, like a market's container before its first set-up; the running Python comes last on its
PATH, where a real box would download it. On Vast the whole disk survives a stop, on RunPod only the persistent volume. The
container's command and logins get the environment variables of the market's containers. A box with GPUs has an nvidia-smi (smi.py)
but no GPU. Vast's boxes start logins in tmux.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from cluster.sim import smi
from cluster.sim.network import Network, arun, run
from cluster.sim.ports import Port
from cluster.sim.rental import Boot

log = logging.getLogger("cluster.sim")

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
REPO = Path(__file__).parents[2]
SSHD = """Port 22
HostKey /etc/ssh/box_host_key
PidFile none
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
AcceptEnv LANG LC_*
AllowTcpForwarding yes
GatewayPorts clientspecified
MaxSessions 100
MaxStartups 200
Subsystem sftp internal-sftp
"""
START = """#!/bin/bash
# What the official images run: SSH for the keys in PUBLIC_KEY.
mkdir -p /root/.ssh && chmod 700 /root/.ssh
if [ -n "$PUBLIC_KEY" ]; then echo "$PUBLIC_KEY" >>/root/.ssh/authorized_keys; fi
"""
TMUX = """if [[ -z $TMUX && -n $SSH_CONNECTION && ! -e ~/.no_auto_tmux ]]; then
    tmux attach-session -t ssh_tmux || tmux new-session -s ssh_tmux
    exit
fi
"""
"""Vast's addition to /root/.bashrc. `touch ~/.no_auto_tmux` disables it, according to its base image's README; the session's name was
seen on its machines; users report that with it, `ssh HOST COMMAND` prints a message of tmux and never runs COMMAND."""


def environment(boot: Boot, public: str, mapped: dict[int, Port], bare: bool) -> dict[str, str]:
    """Returns the variables of the market's containers, the order's env, and the simulated APIs' addresses (real ones are found by DNS)."""
    rental, m, order = boot.rental, boot.rental.machine, boot.rental.order
    env = {"HOME": "/root", "LANG": "C.UTF-8", "SHOESTRING_SIMULATED": "1"}
    env |= (
        {"PATH": f"{SYSTEM_PATH}:{sys.base_prefix}/bin"}
        if bare
        else {"PATH": f"{sys.prefix}/bin:{SYSTEM_PATH}", "PYTHONPATH": str(REPO)}
    )
    env |= {"VAST_URL": boot.urls["vast"], "RUNPOD_URL": boot.urls["runpod"]} | order.env
    if m.market == "vast":
        env |= {"CONTAINER_ID": rental.id, "CONTAINER_API_KEY": rental.key, "VAST_CONTAINERLABEL": f"C.{rental.id}"}
        env |= {"PUBLIC_IPADDR": public, "GPU_COUNT": str(order.count)}
        return env | {f"VAST_TCP_PORT_{p}": str(port.public) for p, port in mapped.items()}
    env |= {"RUNPOD_POD_ID": rental.id, "RUNPOD_API_KEY": rental.key, "RUNPOD_DC_ID": m.region}
    env |= {"RUNPOD_PUBLIC_IP": public, "RUNPOD_GPU_COUNT": str(order.count)}
    return env | {f"RUNPOD_TCP_PORT_{p}": str(port.public) for p, port in mapped.items()}


def why_not() -> str | None:
    """Returns why this machine can't run boxes, with the remedy, or None if it can."""
    if os.geteuid() != 0:
        return "boxes are Linux namespaces, which need root: sudo, or --boxes none"
    programs = {"ip": "iproute2", "unshare": "util-linux", "setpriv": "util-linux"}
    programs |= {"sshd": "openssh-server", "ssh-keygen": "openssh-client"}
    if missing := [f"{p} ({package})" for p, package in programs.items() if not shutil.which(p, path=SYSTEM_PATH)]:
        return f"boxes need {', '.join(missing)}: apt-get install, or --boxes none"
    try:
        run("unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "mount", "--make-rprivate", "/")
    except OSError as error:
        return f"no namespaces here ({error}): a container without the privilege, maybe; or --boxes none"
    return None


class NamespaceBox:
    def __init__(self, network: Network, state: Path, shared: list[Path], bare: bool = False):
        self._network, self._state, self._shared, self._bare = network, state, shared, bare
        self.address, self.public = "", network.public
        self.mapped: dict[int, Port] = {}
        self._folder: Path | None = None
        self._k: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task | None = None
        self._killing = asyncio.Lock()

    async def boot(self, boot: Boot) -> None:
        rental, order = boot.rental, boot.rental.order
        self._flat = order.flat and boot.flat
        self._folder = self._state / "boxes" / rental.id
        self._k = self._network.take()
        space = await self._network.plug(self._k, self._flat)
        self.address = self._network.address(self._k)
        for p in order.ports:
            self.mapped[p] = await Port.open(self.public, (self.address, p), same=p >= 70000)
        command = await self._write(boot)
        volume = [f"{self._folder}/volume={order.volume}"] if order.volume else []
        seen = [sys.base_prefix] if self._bare else [sys.prefix, sys.base_prefix, str(REPO)]
        name = f"{rental.machine.market}-{rental.id}"
        # setpriv makes the process, and with it the whole box, die with this one, even if this one is killed.
        self._process = await asyncio.create_subprocess_exec(
            "setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", space,
            "unshare", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child",
            "bash", str(Path(__file__).with_name("box.sh")), str(self._folder), name, str(self._state), command,
            *dict.fromkeys(seen), "--", *map(str, self._shared), *volume,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env={"PATH": SYSTEM_PATH}, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout
        output = await self._process.stdout.readline()
        if output != b"up\n":
            output += await self._process.stdout.read()
            await self.kill()
            raise OSError(f"box.sh: {output.decode().strip()}")
        self._watch = asyncio.create_task(self._ended(boot.ended))

    async def _ended(self, ended: Callable[[], Awaitable[None]]) -> None:
        """Waits for the container's command to end, then calls ended()."""
        assert self._process
        await self._process.wait()
        self._watch = None
        await ended()

    async def _write(self, boot: Boot) -> str:
        """Writes a new box's disk and, at every start, its environment; returns the container's command."""
        assert self._folder
        folder, rental, order = self._folder, boot.rental, boot.rental.order
        if rental.machine.market == "runpod" and folder.exists():
            for part in ("home", "tmp", "upper", "work"):
                await asyncio.to_thread(shutil.rmtree, folder / part)
        for part in ("home/.ssh", "tmp", "upper/etc/ssh", "work", "root", "volume"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "tmp").chmod(0o1777)
        etc, home = folder / "upper/etc", folder / "home"
        if not (etc / "ssh/box_host_key").exists():
            await arun("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(etc / "ssh/box_host_key"))
            hook = TMUX if rental.machine.market == "vast" else ""
            (home / ".bashrc").write_text(f". /etc/box_environment\n{hook}")
            (home / ".profile").write_text(". ~/.bashrc\n")
            (home / ".ssh").chmod(0o700)
            if rental.machine.market == "vast":
                (home / ".ssh/authorized_keys").write_text("".join(k + "\n" for k in order.keys))
        env = environment(boot, self.public, self.mapped, self._bare)
        (etc / "box_environment").write_text("".join(f"export {k}={shlex.quote(v)}\n" for k, v in env.items()))
        name = f"{rental.machine.market}-{rental.id}"
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {name}\n")
        (etc / "ssh/sshd_config").write_text(SSHD)
        if order.count:
            program = folder / "upper/usr/bin/nvidia-smi"
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text(smi.program(rental.machine, order))
            program.chmod(0o755)
        start = folder / "upper/start.sh"
        serve = boot.sshd and order.sshd
        start.write_text(START + ("exec /usr/sbin/sshd -D -e\n" if serve else "exec sleep infinity\n"))
        start.chmod(0o755)
        if rental.machine.market == "runpod":  # args replace the image's command without a shell
            try:
                return "exec " + shlex.join(shlex.split(order.start) or ["/start.sh"])
            except ValueError as error:
                raise OSError(f"args: {error}") from None
        (home / "onstart.sh").write_text(order.start)
        return "bash /root/onstart.sh >/root/onstart.log 2>&1 & exec /start.sh"

    async def kill(self) -> None:
        async with self._killing:
            if self._watch:
                self._watch.cancel()
                self._watch = None
            if self._process:
                if self._process.returncode is None:
                    self._process.kill()
                await self._process.wait()
                self._process = None
            for port in self.mapped.values():
                await port.close()
            if self._k is not None:
                await self._network.unplug(self._k, self._flat)
            self.address, self.mapped, self._k = "", {}, None

    async def remove(self) -> None:
        if self._folder:
            await asyncio.to_thread(shutil.rmtree, self._folder)

    async def link(self, up: bool) -> None:
        if self._k is not None:
            await self._network.link(self._k, self._flat, up)


class NoBox:
    """A box that runs nothing, for tests of clients, which need no namespaces. Its ports refuse connections."""

    def __init__(self) -> None:
        self.address, self.public, self.mapped = "", "127.0.0.1", {}

    async def boot(self, boot: Boot) -> None:
        self.address = "127.0.0.1"
        self.mapped = {p: await Port.open(self.public, None) for p in boot.rental.order.ports}

    async def kill(self) -> None:
        self.address, self.mapped = "", {}

    async def remove(self) -> None:
        pass

    async def link(self, up: bool) -> None:
        pass
