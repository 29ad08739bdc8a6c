"""Runs Python code written by a model in a sandbox: bubblewrap's namespaces, and resource limits set before the code starts.

The code can access the interpreter and its standard library (read-only) and an empty /tmp of 16 MB. It has no network, no
environment variables, no access to the user's files or other processes, and can't start processes. There is no way to run it
without the sandbox: the task is rejected where bubblewrap doesn't work. It needs Linux with user namespaces, which some
containers forbid.
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
WALL_SECONDS = 60
"""Twelve times the CPU time, so that a right program is not failed because the machine is busy; it ends programs that sleep."""
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
"""Writes `end` once the program has run to its end, so that an exit(0) before the tests doesn't count as success. A program
that searches this process for `end` can find it: the check is made for models that write code, not against deliberate cheating."""


@dataclass(frozen=True)
class Outcome:
    passed: bool
    why: str
    """The last line of the error, or the limit that was exceeded; "" if it passed."""


def run(source: str) -> Outcome:
    """Runs a complete program. It passes if it runs to its end within the limits, without an exception."""
    limits = {"RLIMIT_AS": MEMORY, "RLIMIT_CPU": CPU_SECONDS, "RLIMIT_FSIZE": FILE, "RLIMIT_CORE": 0}
    end = secrets.token_hex(8)
    filters = _no_processes()
    try:
        # Output goes to files, so that RLIMIT_FSIZE also limits what the program prints.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            done = subprocess.run(
                [*_command(), "--seccomp", str(filters), *_python(), "-c", BOOT],
                pass_fds=[filters],
                input=json.dumps({"source": source, "limits": limits, "end": end}).encode(),
                stdout=out,
                stderr=err,
                timeout=WALL_SECONDS,
            )
            output, error = _tail(out), _tail(err)
    except subprocess.TimeoutExpired:
        return Outcome(False, f"took more than {WALL_SECONDS} s")
    finally:
        os.close(filters)
    if output == end:
        return Outcome(True, "")
    last = [line.strip() for line in error.splitlines() if line.strip()][-1:]
    killed = done.returncode in (-9, 137, -24, 152)
    return Outcome(False, f"took more than {CPU_SECONDS} s" if killed else last[0][:300] if last else "ended early")


def _tail(file) -> str:
    """Returns the last 4 kB of a file."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
    return file.read().decode(errors="replace")


@functools.cache
def problem() -> str | None:
    """Returns why programs can't be run here, with a remedy; None if they can."""
    if not sys.platform.startswith("linux") or platform.machine() not in CALLS or not shutil.which("bwrap"):
        return "runs code that a model wrote, in bubblewrap, which isn't installed: apt-get install bubblewrap (Linux)."
    found = run("")
    return None if found.passed else (
        f"runs code that a model wrote, and bubblewrap can't isolate it here: {found.why} In a container, allow user "
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
    """Returns the command of the interpreter, without the packages of its environment."""
    return os.path.realpath(sys.executable), "-I", "-S"


CALLS = {"x86_64": (0xC000003E, (56, 57, 58, 435)), "aarch64": (0xC00000B7, (220, 435))}
"""AUDIT_ARCH and the numbers of clone, fork, vfork and clone3 (linux/audit.h, asm/unistd.h)."""


def _no_processes() -> int:
    """Returns a pipe that holds a seccomp filter under which starting a process or thread fails. RLIMIT_NPROC doesn't limit
    root, so without the filter a fork bomb would take down the machine."""
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
