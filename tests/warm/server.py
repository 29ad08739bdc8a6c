"""Forks processes that have already imported the libraries for training (tests/warm/__init__.py)."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import selectors
import shutil
import signal
import socket
import struct
import sys
from pathlib import Path

from lib.generation import vllm_generator
from tests.warm import signature

PATH = [p for p in sys.path[1:] if p not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]


MODULES = (
    # of the jobs and of training
    "accelerate", "datasets", "jsonargparse", "docstring_parser", "typeshed_client", "pandas", "peft", "pyarrow", "requests", "torch",
    # of every process of Ray, which itself can't be here
    "aiohttp.web", "aiohttp_cors", "click", "colorful", "google.protobuf.json_format", "google.protobuf.struct_pb2",
    "google.protobuf.timestamp_pb2", "jsonschema", "msgpack", "opentelemetry.exporter.prometheus", "prometheus_client",
    "pydantic.dataclasses", "starlette.applications", "tabulate", "uvloop",
)  # fmt: skip
NAMES = {
    "transformers": ("Trainer", "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer", "LlamaForCausalLM"),
    "trl": (
        "SFTTrainer", "DPOTrainer", "KTOTrainer", "RewardTrainer", "SFTConfig", "DPOConfig", "KTOConfig", "RewardConfig",
    ),
}  # fmt: skip
"""What these modules import only when it is asked for."""
VLLM = ("entrypoints.launchers.api_server.app_state", "v1.engine.async_llm", "v1.engine.core", "v1.worker.cpu_worker")


def read() -> None:
    """Imports the modules that a job's processes import, and those of vLLM's server where it is installed."""
    with_vllm = vllm_generator.installed()
    if with_vllm:
        vllm_generator.environment("WARNING", "cpu")  # as serve/engines.py sets it before the import
    for module in MODULES:
        importlib.import_module(module)
    for module, names in NAMES.items():
        for name in names:
            getattr(importlib.import_module(module), name)
    if with_vllm:
        import setproctitle

        setproctitle.getproctitle()  # finds the arguments' memory, which vLLM's processes put their names into
        sys.modules["ray"] = None  # type: ignore[assignment]  # vLLM imports it only to see whether it is there
        for name in VLLM:
            importlib.import_module(f"vllm.{name}")
        del sys.modules["ray"]
    assert "ray" not in sys.modules  # its core reads the environment on import


def serve(folder: Path, known: dict[str, str]) -> dict | None:
    """Forks for every request. Returns the request in the fork, and None in the server once it is told to end."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/socket")
    listener.listen(128)
    events = selectors.DefaultSelector()
    events.register(listener, selectors.EVENT_READ)
    (folder / "forks").mkdir()
    children: dict[socket.socket, int] = {}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ended, parent = False, os.getppid()

    def end(*_) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    while not ended and os.getppid() == parent:  # otherwise its parent has died
        for key, _ in events.select(timeout=1):
            if key.fileobj is listener:
                client = listener.accept()[0]
                asked, fds = _asked(client)
                if asked is None:
                    client.close()
                elif signature(asked["env"]) != known:
                    with contextlib.suppress(OSError):  # it has been killed meanwhile
                        client.sendall(json.dumps({"python": sys.executable}).encode() + b"\n")
                    client.close()
                elif child := os.fork():
                    children[client] = child
                    (folder / "forks" / str(_pid(client))).write_text(str(child))
                    events.register(client, selectors.EVENT_READ)
                    events.register(os.pidfd_open(child), selectors.EVENT_READ, client)
                else:
                    events.close()
                    for s in (listener, client, *children):
                        s.close()
                    above = max(asked["fds"]) + 1  # so that no number is overwritten before its file has moved
                    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in fds]
                    for fd in fds:
                        os.close(fd)
                    for fd, number in zip(moved, asked["fds"], strict=True):
                        os.dup2(fd, number)
                        os.close(fd)
                    return asked
                for fd in fds:
                    os.close(fd)
            elif key.data is None and key.fileobj in children:  # a client whose program hasn't ended in this very round
                told = key.fileobj.recv(64)
                for number in told or [signal.SIGKILL]:
                    os.kill(children[key.fileobj], number)
                if not told:
                    events.unregister(key.fileobj)
            elif key.data in children:  # its child ended
                client, status = key.data, os.waitpid(children[key.data], 0)[1]
                (folder / "forks" / str(_pid(client))).unlink()
                code = os.waitstatus_to_exitcode(status)
                with contextlib.suppress(OSError, KeyError):
                    events.unregister(client)
                    client.sendall(json.dumps({"code": code} if code >= 0 else {"signal": -code}).encode() + b"\n")
                events.unregister(key.fileobj)
                os.close(key.fd)
                del children[client]
                client.close()
    for child in children.values():
        os.kill(child, signal.SIGKILL)
    shutil.rmtree(folder)
    return None


def _pid(client: socket.socket) -> int:
    """Returns the pid of the requesting program."""
    return struct.unpack("iii", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]


def _asked(client: socket.socket) -> tuple[dict | None, list[int]]:
    """Returns a client's request and its open files; None if the client ended before sending all of it."""
    fds: list[int] = []
    try:
        head, fds, _, _ = socket.recv_fds(client, 8, 200)
        size, got = int.from_bytes(head, "big"), b""
        while len(head) == 8 and len(got) < size and (more := client.recv(size - len(got))):
            got += more
        return json.loads(got), fds
    except (OSError, ValueError):
        return None, fds


def become(asked: dict, program: str) -> None:
    """Runs the requested command as Python would."""
    import datasets
    import huggingface_hub

    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(asked["env"])
    offline = asked["env"].get("HF_HUB_OFFLINE", "") in ("1", "true")
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = offline
    os.chdir(asked["cwd"])
    os.umask(asked["umask"])
    sys.executable, words = program, asked["words"]
    multiprocessing.set_executable(program)
    while words[0] in ("-u", "-B"):
        words = words[1:]
    sys.stdout.reconfigure(line_buffering=os.isatty(1) or len(words) < len(asked["words"]))
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    match words:
        case ["-m", module, *rest]:
            sys.argv, sys.path = [module, *rest], [os.getcwd(), *paths, *PATH]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *rest]:
            sys.argv, sys.path = ["-c", *rest], ["", *paths, *PATH]
            _run(code)
        case [script, *rest]:
            sys.argv, sys.path = [script, *rest], [os.path.dirname(os.path.abspath(script)), *paths, *PATH]
            _run(Path(script).read_text(), script)


def _run(code: str, file: str | None = None) -> None:
    """Runs the code in the module __main__ itself, under whose name pickle finds its functions."""
    main = sys.modules["__main__"].__dict__
    for name in [n for n in main if n not in ("__name__", "__builtins__")]:
        del main[name]
    main |= {"__spec__": None} | ({"__file__": file} if file else {})
    exec(compile(code, file or "<string>", "exec"), main)


status: list[int] = []
"""Exit status of a fork whose program has ended, for leave()."""


def leave() -> None:
    """Ends a fork at once, as the last of its exit functions.

    After them Python clears every module, which takes a fork a second: it writes to pages shared with the server, and each of them
    is copied.
    """
    if status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status[0])


def run(asked: dict, program: str) -> None:
    try:
        become(asked, program)
        status.append(0)
    except SystemExit as e:
        if e.code is None or isinstance(e.code, int):
            status.append((e.code or 0) & 255)
        raise


if __name__ == "__main__":
    from tests.warm import server as this  # not __main__, which the fork's program becomes

    known = signature(dict(os.environ))  # before the libraries add to it
    atexit.register(this.leave)  # the first one registered is the last one called
    this.read()
    gc.freeze()
    if asked := this.serve(Path(sys.argv[1]), known):
        this.run(asked, f"{sys.argv[1]}/python")
