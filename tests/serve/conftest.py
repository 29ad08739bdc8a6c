"""A run behind `serve run`, as a user starts it."""

import os
import subprocess
import threading
import time
from contextlib import contextmanager, suppress

import httpx
import psutil
import pytest

from serve.engines import Engine
from serve.keeper import Keeper
from tests import warm
from tests.conftest import REPO, free_port
from tests.http import http


@contextmanager
def serving(folder, args: dict):
    """Runs `serve run` with one application until its /health answers; yields (the API's address, its process)."""
    port = free_port()
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [warm.python(), "-m", "ray.serve.scripts", "run", "--address", "local", "serve.app:app"]
    command += [f"{key}={value}" for key, value in (args | {"port": port}).items()]
    with (folder / "log").open("w") as log:
        p = subprocess.Popen(command, cwd=REPO, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        give_up = time.time() + 480
        while time.time() < give_up:
            if p.poll() is not None:
                pytest.fail((folder / "log").read_text()[-3000:])
            try:
                if http.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        else:
            pytest.fail((folder / "log").read_text()[-3000:])
        yield f"http://127.0.0.1:{port}/v1", psutil.Process(p.pid)
    finally:
        mine = warm.tree(psutil.Process(p.pid)) if p.poll() is None else []
        p.terminate()  # not SIGINT, which a shell's background jobs ignore
        with suppress(subprocess.TimeoutExpired):
            p.wait(30)
        for left in mine:
            with suppress(psutil.NoSuchProcess):
                left.kill()


def replicas(process) -> list:
    """Returns the processes of the model's replicas."""
    found = []
    for child in warm.tree(process):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            found += [child] if "ServeReplica" in " ".join(child.cmdline()[:1]) else []
    return found


async def well() -> None:
    """An engine's health check that always passes."""


def keeping(engine: Engine) -> Keeper:
    """Returns a keeper that already has this engine."""
    keeper = Keeper(None)
    keeper.engine = engine
    return keeper


@contextmanager
def listening(app):
    """Serves `app` on a loopback port; yields its address."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.config.port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="package")
def url(runs, tmp_path_factory):
    """The API of the SFT run, with transformers; three requests at a time, and three waiting ones."""
    args = {"run": runs["sft"], "engine": "transformers", "dtype": "float32", "at_once": 3, "queue": 3}
    with serving(tmp_path_factory.mktemp("serve"), args) as (address, _):
        yield address
