"""watchdog.sh, run by the shells that real boxes have, against a market's API on loopback."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.node import watchdog
from tests.conftest import PATIENCE


@pytest.fixture
def api():
    """(address, received requests as (seconds since the start, method, path, key, body), statuses or (status, body) to reply in turn)"""
    received, statuses, began = [], [], time.time()

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            received.append((time.time() - began, self.command, self.path, self.headers["Authorization"], body))
            status = statuses.pop(0) if statuses else 200
            status, text = status if isinstance(status, tuple) else (status, "")
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        do_DELETE = do_POST = answer

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received, statuses
    server.shutdown()
    server.server_close()


@pytest.fixture
def start(tmp_path, api):
    """start("6", CONTAINER_ID="1") → the watchdog's process; its heartbeat file is in tmp_path."""
    running = []

    def run(*arguments, shell="sh", pause="1", **env):
        base = {
            "PATH": os.environ["PATH"],
            "SHOESTRING_HEARTBEAT": str(tmp_path / "beat"),
            "VAST_URL": api[0],
            "RUNPOD_URL": api[0],
        }
        # Five seconds are shortened to one.
        script = tmp_path / "watchdog.sh"
        script.write_text(
            watchdog.SCRIPT.read_text().replace("every=5", "every=1").replace("sleep 30", f"sleep {pause}")
        )
        with (tmp_path / "log").open("w") as log:
            running.append(subprocess.Popen([shell, script, *arguments], env=base | env, stdout=log, stderr=log))
        return running[-1]

    yield run
    for p in running:
        p.kill()
        p.wait()


def wait_until(reached, seconds: float = PATIENCE) -> None:
    deadline = time.time() + seconds
    while not reached():
        assert time.time() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_ends_a_vast_rental_some_time_after_the_last_heartbeat(start, api, tmp_path):
    process = start("3", CONTAINER_ID="77", CONTAINER_API_KEY="its-own")
    wait_until((tmp_path / "beat.seen").exists)
    for _ in range(9):
        time.sleep(0.5)
        (tmp_path / "beat").touch()
    last = time.time()
    assert not api[1]
    wait_until(lambda: api[1])
    assert time.time() - last > 2
    assert api[1][0][1:4] == ("DELETE", "/api/v0/instances/77/", "Bearer its-own")
    assert process.poll() is None and "its-own" not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_tries_again_until_it_worked_and_not_once_a_head_is_back(start, api, tmp_path):
    api[2].extend([500, 429])
    start("2", CONTAINER_ID="77", CONTAINER_API_KEY="k")
    wait_until(lambda: len(api[1]) == 3)
    (tmp_path / "beat").touch()
    time.sleep(1.5)
    count = len(api[1])
    for _ in range(6):
        (tmp_path / "beat").touch()
        time.sleep(0.5)
    assert len(api[1]) == count


def test_where_its_key_does_not_open_runpods_api_runpodctl_ends_it(start, api, tmp_path):
    """It is in every pod, with the pod's own key: docs.runpod.io/runpodctl/overview."""
    api[2].extend([(401, "")] * 99)
    (tmp_path / "tools").mkdir()
    ctl = tmp_path / "tools/runpodctl"
    ctl.write_text(f"#!/bin/sh\necho $* > {tmp_path}/told\n")
    ctl.chmod(0o755)
    start("1", RUNPOD_POD_ID="pod1", RUNPOD_API_KEY="k", PATH=f"{tmp_path}/tools:{os.environ['PATH']}")
    wait_until(lambda: (tmp_path / "told").exists() and (tmp_path / "told").read_text())
    assert (tmp_path / "told").read_text() == "pod delete pod1\n"
    assert api[1][0][1:4] == ("DELETE", "/v2/pods/pod1", "Bearer k")


@pytest.mark.parametrize(
    ("body", "ends"),
    [
        ('{"success": false, "error": "auth_error", "msg": "Invalid user key"}', False),
        ("<html>not found</html>", False),
        ('{"success": false, "error": "no_such_instance", "msg": "Instance 77 not found."}', True),
        ('{"success":false,"error":"not_found","msg":"Instance not found"}', True),
        ('{"title": "Not Found", "status": 404, "detail": "pod not found"}', True),
    ],
)
@pytest.mark.slow
def test_a_404_is_the_end_only_where_the_market_says_so(start, api, tmp_path, body, ends):
    """After the end it waits for its container to be removed; otherwise it retries at once."""
    api[2].extend([(404, body)] * 99)
    start("1", CONTAINER_ID="77", CONTAINER_API_KEY="k", pause="600")
    wait_until(lambda: len(api[1]) >= (1 if ends else 3))
    time.sleep(2.5 if ends else 0)
    assert (len(api[1]) == 1) == ends and "its-own" not in (tmp_path / "log").read_text()


def test_without_curl(start, api, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "bash", "sleep", "touch", "mkdir", "dirname", "date", "timeout"):
        (tools / name).symlink_to(shutil.which(name))
    (tools / "python3").symlink_to(Path(sys.executable).resolve())
    start("1", CONTAINER_ID="77", CONTAINER_API_KEY="k", PATH=str(tools), shell=shutil.which("sh"))
    wait_until(lambda: api[1])
    assert api[1][0][1:4] == ("DELETE", "/api/v0/instances/77/", "Bearer k")


@pytest.mark.slow
def test_in_a_flat_network_it_looks_for_the_head_itself(start, api):
    with socket.create_server(("127.0.0.1", 0)) as head:
        start("2", "127.0.0.1", str(head.getsockname()[1]), CONTAINER_ID="77", CONTAINER_API_KEY="k")
        time.sleep(5)
        assert not api[1]
    wait_until(lambda: api[1])


def test_its_start_is_what_a_shell_runs(tmp_path):
    text = watchdog.start(600, ("10.0.0.1", 6379)).replace("/tmp/shoestring", str(tmp_path / "s"))
    for shell in ("sh", "bash"):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)
    assert "watchdog.sh 600 10.0.0.1 6379 >" in text and len(text) < 4000
