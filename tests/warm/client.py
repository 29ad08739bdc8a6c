"""The program (tests/warm/__init__.py). It imports as little as possible, and waits while the server is still importing."""

import json
import os
import signal
import socket
import sys
import time


def set_up(words):
    """Returns the command line of a worker that Ray starts through its setup_worker.py, with that worker's variables set.

    The script imports Ray for this, which takes most of the time of starting a worker. Any other command line is returned as it is.
    """
    option = "--serialized-runtime-env-context="
    context = [w for w in words if w.startswith(option)]
    if not (words[0].endswith("/ray/_private/workers/setup_worker.py") and context):
        return words
    found = json.loads(context[0][len(option) :])
    variables = found.pop("env_vars", {})
    if (
        found.pop("py_executable", None) != sys.argv[0]
        or any(found.values())
        or any("$" in v for v in variables.values())
    ):
        return words
    os.environ.update(variables)
    return [w for w in words[1:] if w != context[0] and not w.startswith("--language=")]


def inherited():
    """Returns the open file descriptors, which the command will have under the same numbers."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            os.fstat(fd)
        except OSError:  # it was the folder's own
            continue
        found.append(fd)
    return sorted(found)


fds = inherited()
folder = os.path.dirname(os.path.realpath(sys.argv[0]))
words = set_up(sys.argv[1:])
server = socket.socket(socket.AF_UNIX)
refused = 0
while True:
    try:
        server.connect(f"{folder}/socket")
        break
    except (FileNotFoundError, ConnectionRefusedError) as e:  # not listening yet, or no longer
        refused += isinstance(e, ConnectionRefusedError)
        if refused > 100 or not os.path.isdir(folder):
            sys.exit("the server of tests/warm has ended")
        time.sleep(0.05)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the request is sent
for number in SIGNALS:
    signal.signal(number, lambda number, frame: server.sendall(bytes([number])))
asked = {"words": words, "env": dict(os.environ), "cwd": os.getcwd(), "umask": os.umask(0o022), "fds": fds}
asked = json.dumps(asked).encode()
socket.send_fds(server, [len(asked).to_bytes(8, "big")], fds)
server.sendall(asked)
signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
answer = json.loads(server.makefile().readline() or '{"signal": 9}')
if "python" in answer:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    os.execv(answer["python"], [answer["python"], *words])
if "signal" in answer:
    signal.signal(answer["signal"], signal.SIG_DFL) if answer["signal"] != signal.SIGKILL else None
    os.kill(os.getpid(), answer["signal"])
os._exit(answer["code"])
