"""Runs Python that a model wrote where it can do no harm: bubblewrap's namespaces, and limits set before it starts.

It sees the interpreter and its standard library, read-only, and an empty /tmp of 16 MB; no network, no process besides, no
environment, none of the user's files. There is no way to run it without: where bubblewrap can't work (Linux with user
namespaces is needed, which some containers forbid), the task is refused.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import platform
import secrets
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass

CPU_SECONDS = 5
WALL_SECONDS = 20
MEMORY = 1 << 30
FILE = 16 << 20

BOOT = """
import json, os, resource, sys
said = json.load(sys.stdin)
for name, value in said["limits"].items():
    resource.setrlimit(getattr(resource, name), (value, value))
out = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
sys.argv = ["program"]
exec(compile(said["source"], "program", "exec"), {"__name__": "__main__"})
os.write(out, said["end"].encode())
"""
"""`end` is written when the program came to its end, so that an exit(0) before the tests is no success. A program that
looks for `end` in this process can find it: this is for models that write code, not for people who attack a score."""


@dataclass(frozen=True)
class Outcome:
    passed: bool
    why: str
    """The last line of the error, or which limit was met; "" when it passed."""


def run(source: str) -> Outcome:
    """Runs a whole program; passed: it came to its end within the limits without an exception."""
    limits = {"RLIMIT_AS": MEMORY, "RLIMIT_CPU": CPU_SECONDS, "RLIMIT_FSIZE": FILE, "RLIMIT_CORE": 0}
    end = secrets.token_hex(8)
    filters = _no_processes()
    try:
        # Into files, so that their limit holds for what it prints too.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            done = subprocess.run(
                [*_command(), "--seccomp", str(filters), *_python(), "-c", BOOT],
                pass_fds=[filters],
                input=json.dumps({"source": source, "limits": limits, "end": end}).encode(),
                stdout=out,
                stderr=err,
                timeout=WALL_SECONDS,
            )
            said, error = _tail(out), _tail(err)
    except subprocess.TimeoutExpired:
        return Outcome(False, f"took more than {WALL_SECONDS} s")
    finally:
        os.close(filters)
    if said == end:
        return Outcome(True, "")
    last = [line.strip() for line in error.splitlines() if line.strip()][-1:]
    killed = done.returncode in (-9, 137, -24, 152)
    return Outcome(False, f"took more than {CPU_SECONDS} s" if killed else last[0][:300] if last else "ended early")


def _tail(file) -> str:
    """The last 4 kB of a file."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
    return file.read().decode(errors="replace")


@functools.cache
def problem() -> str | None:
    """Why programs can't be run here, and what to do; None where they can."""
    if not sys.platform.startswith("linux") or platform.machine() not in CALLS or not shutil.which("bwrap"):
        return "runs code that a model wrote, in bubblewrap, which isn't here: apt-get install bubblewrap (Linux)."
    found = run("")
    return None if found.passed else (
        f"runs code that a model wrote, and bubblewrap can't shut it in here: {found.why} In a container, allow user "
        "namespaces (docker run --security-opt seccomp=unconfined)."
    )  # fmt: skip


@functools.cache
def _command() -> tuple[str, ...]:
    seen = [p for p in ("/usr", "/lib", "/lib64", "/bin", "/lib32") if os.path.exists(p)]
    seen += [] if sys.base_prefix.startswith("/usr") else [sys.base_prefix]
    binds = [word for p in seen for word in ("--ro-bind", p, p)]
    walls = "--unshare-all --die-with-parent --new-session --clearenv --proc /proc --dev /dev"
    folder = f"--size {FILE} --tmpfs /tmp --remount-ro /dev --remount-ro / --chdir /tmp"
    return ("bwrap", *binds, *walls.split(), *folder.split())


def _python() -> tuple[str, ...]:
    """The interpreter without the packages of its environment."""
    return os.path.realpath(sys.executable), "-I", "-S"


CALLS = {"x86_64": (0xC000003E, (56, 57, 58, 435)), "aarch64": (0xC00000B7, (220, 435))}
"""AUDIT_ARCH and the numbers of clone, fork, vfork and clone3 (linux/audit.h, asm/unistd.h)."""


def _no_processes() -> int:
    """A pipe to read a seccomp filter from that fails whatever starts a process or a thread: root has no limit on their
    number (RLIMIT_NPROC), so a program that forks without end would take the machine with it."""
    arch, calls = CALLS[platform.machine()]
    load, equal, above, give = 0x20, 0x15, 0x35, 0x06
    allow, again, kill = 0x7FFF0000, 0x00050000 | errno.EAGAIN, 0x80000000
    n = len(calls)
    steps = [(load, 0, 0, 4), (equal, 1, 0, arch), (give, 0, 0, kill), (load, 0, 0, 0), (above, n + 1, 0, 0x40000000)]
    steps += [(equal, n - i, 0, call) for i, call in enumerate(calls)]
    steps += [(give, 0, 0, allow), (give, 0, 0, again)]
    reader, writer = os.pipe()
    os.write(writer, b"".join(struct.pack("HBBI", *step) for step in steps))
    os.close(writer)
    return reader
