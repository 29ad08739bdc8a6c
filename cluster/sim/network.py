"""A simulator's network: its own subnet, and the cleanup of dead simulators.

Several simulators can run on one machine. Number N (1 to 250) has the subnet 10.213.N.0/24. Its hub (a network namespace with the
bridge of the flat network) and the link between the hub and this machine are called ssN; this machine's end of the link has
10.213.N.1, the 'public' address. Box K has the address 10.213.N.K in the namespace ssN-K. Its link ssNvK ends in the hub (flat), or on
this machine, with a route only to the public address (isolated). A simulator is alive while its state folder, whose path is the alias
of its link, is locked.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path


def run(*command: str) -> str:
    """Runs the command and returns its stdout. Raises OSError if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


async def arun(*command: str) -> str:
    return await asyncio.to_thread(run, *command)


def lock(state: Path, wait: bool = False) -> int | None:
    """Returns a file descriptor that holds the folder's lock, or None if another process holds it."""
    state.mkdir(parents=True, exist_ok=True)
    handle = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def spaces() -> list[str]:
    return [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.strip()]


def clear(name: str) -> None:
    """Removes every process, namespace and link of the simulator ssN."""
    for space in [s for s in spaces() if re.fullmatch(rf"{name}(-\d+)?", s)]:
        for pid in run("ip", "netns", "pids", space).split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        run("ip", "netns", "del", space)
    for link in json.loads(run("ip", "-j", "link")):
        if re.fullmatch(rf"{name}(v\d+)?", link["ifname"]):
            # May have gone with its namespace.
            subprocess.run(["ip", "link", "del", link["ifname"]], capture_output=True)


def clear_dead(mine: Path) -> None:
    """Removes the leftovers of killed simulators. `mine`: a folder whose lock we hold."""
    for link in json.loads(run("ip", "-j", "link")):
        if re.fullmatch(r"ss\d+", link["ifname"]) and (alias := link.get("ifalias")):
            state = Path(alias)
            handle = lock(state) if state.exists() and state != mine else None
            if handle is not None or not state.exists() or state == mine:
                clear(link["ifname"])
            if handle is not None:
                os.close(handle)


class Network:
    def __init__(self, state: Path):
        """Raises ValueError if a living simulator uses that state folder."""
        self._lock = lock(state)
        if self._lock is None:
            raise ValueError(f"--state {state}: another simulator is using this folder; end it, or name another folder")
        starting = lock(Path(tempfile.gettempdir()) / "shoestring-sim-starting", wait=True)  # one at a time
        assert starting is not None
        clear_dead(mine=state.resolve())
        self.number = next(n for n in range(1, 251) if self._claim(n))
        self.name, self.public = f"ss{self.number}", f"10.213.{self.number}.1"
        hub = self.name
        run("ip", "link", "add", hub, "type", "veth", "peer", "name", "up0", "netns", hub)
        run("ip", "link", "set", hub, "alias", str(state.resolve()))
        os.close(starting)
        run("ip", "addr", "add", f"{self.public}/24", "dev", hub)
        run("ip", "link", "set", hub, "up")
        run("ip", "-n", hub, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        run("ip", "-n", hub, "link", "set", "up0", "master", "br0")
        for link in ("br0", "up0", "lo"):
            run("ip", "-n", hub, "link", "set", link, "up")
        self._used: set[int] = set()
        self._last = 1

    def _claim(self, number: int) -> bool:
        return subprocess.run(["ip", "netns", "add", f"ss{number}"], capture_output=True).returncode == 0

    def take(self) -> int:
        """Returns the free K that has been unused for longest, so that addresses aren't reused at once."""
        order = [*range(self._last + 1, 251), *range(2, self._last + 1)]
        self._last = next(k for k in order if k not in self._used)
        self._used.add(self._last)
        return self._last

    def address(self, k: int) -> str:
        return f"10.213.{self.number}.{k}"

    async def plug(self, k: int, flat: bool) -> str:
        """Creates a network namespace with the address of K and returns its name."""
        space, cable = f"{self.name}-{k}", f"{self.name}v{k}"
        await arun("ip", "netns", "add", space)
        inside, here = ("ip", "-n", space), ("ip", "-n", self.name) if flat else ("ip",)
        await arun(*here, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        if flat:
            await arun(*here, "link", "set", cable, "master", "br0")
            await arun(*inside, "addr", "add", f"{self.address(k)}/24", "dev", "eth0")
        else:
            await arun(*here, "addr", "add", self.public, "peer", self.address(k), "dev", cable)
            await arun(*inside, "addr", "add", self.address(k), "peer", self.public, "dev", "eth0")
        await arun(*here, "link", "set", cable, "up")
        await arun(*inside, "link", "set", "lo", "up")
        await arun(*inside, "link", "set", "eth0", "up")
        return space

    async def link(self, k: int, flat: bool, up: bool) -> None:
        here = ("ip", "-n", self.name) if flat else ("ip",)
        await arun(*here, "link", "set", f"{self.name}v{k}", "up" if up else "down")

    async def unplug(self, k: int, flat: bool) -> None:
        here = ("ip", "-n", self.name) if flat else ("ip",)
        await arun(*here, "link", "del", f"{self.name}v{k}")
        await arun("ip", "netns", "del", f"{self.name}-{k}")
        self._used.discard(k)

    def close(self) -> None:
        clear(self.name)
        assert self._lock is not None
        os.close(self._lock)
