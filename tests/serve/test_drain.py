"""`serve run` told to end: what was asked before is answered."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.conftest import REPO, free_port

PROGRAM = """
import sys, time
from serve import drain
drain.at_exit()
import ray
from ray import serve

@serve.deployment(graceful_shutdown_timeout_s=60)
class Slow:
    async def __call__(self, request):
        import asyncio
        await asyncio.sleep(4)
        return "answered"

ray.init(address="local", include_dashboard=False, namespace="serve")
serve.start(http_options={"port": int(sys.argv[1])})
serve.run(Slow.bind())
print("ready", flush=True)
while True:
    time.sleep(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_what_is_under_way_is_answered(told, tmp_path):
    url = f"http://127.0.0.1:{(port := free_port())}"
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with (tmp_path / "log").open("w") as log, ThreadPoolExecutor(1) as pool:
        p = subprocess.Popen([sys.executable, "-c", PROGRAM, str(port)], cwd=REPO, env=env, stdout=log, stderr=log)
        try:
            give_up = time.time() + 120
            while "ready" not in (tmp_path / "log").read_text() and p.poll() is None and time.time() < give_up:
                time.sleep(0.2)
            asked = pool.submit(httpx.get, url, timeout=60)
            time.sleep(2)
            p.send_signal(told)
            assert asked.result().text == "answered", (tmp_path / "log").read_text()[-2000:]
            p.wait(60)
        finally:
            p.kill()
