"""The program (tests/warm/__init__.py). It imports as little as possible, and waits while the server is still importing."""

import json
import os
import signal
import socket
import sys
import time

folder = os.path.dirname(os.path.realpath(sys.argv[0]))
words = sys.argv[1:]
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
asked = json.dumps({"words": words, "env": dict(os.environ), "cwd": os.getcwd(), "umask": os.umask(0o022)}).encode()
socket.send_fds(server, [len(asked).to_bytes(8, "big")], [0, 1, 2])
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
