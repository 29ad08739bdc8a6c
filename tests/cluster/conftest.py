"""The simulated markets, for all tests of the cluster."""

import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.node.autoscaler_config import complete
from tests.cluster.laptop import Laptop
from tests.cluster.nodes import cluster
from tests.conftest import PATIENCE, REPO, run_job
from tests.http import http

pytest.register_assert_rewrite("tests.cluster.e2e")


class Sim:
    """A simulator in its own process."""

    def __init__(self, process: subprocess.Popen, env: dict[str, str], output: str):
        self.process, self.env, self.output = process, env, output
        self.vast_url, self.runpod_url = env["VAST_URL"], env["RUNPOD_URL"]

    def laptop(self, folder: Path, shared: Path) -> Laptop:
        """Returns a laptop that reaches these markets and has keys of both."""
        public = re.search(r"//([\d.]+):", self.vast_url)[1]
        return Laptop(folder, public, self.env | {"SHOESTRING_PACE": "100"}, shared)

    def control(self, name: str, **body) -> None:
        """POST /_sim/NAME: see `python -m cluster.sim --help`."""
        answer = http.post(f"{self.vast_url}/_sim/{name}", json=body)
        assert answer.status_code == 200, answer.text

    def get(self, name: str):
        return http.get(f"{self.vast_url}/_sim/{name}").raise_for_status().json()

    def state(self) -> dict:
        return self.get("state")

    def bill(self) -> dict:
        return self.get("bill")

    def wait(self, ok, seconds: float = PATIENCE) -> dict:
        """Returns the first state for which ok(state) is true. Raises TimeoutError with the last state."""
        give_up = time.time() + seconds
        while not ok(state := self.state()):
            if time.time() > give_up:
                raise TimeoutError(f"{state}\n{Path(self.output).read_text()[-3000:]}")
            time.sleep(0.1)
        return state


@contextmanager
def simulator(**options):
    """simulator(network="flat", boot=0.5) → Sim, with free ports; the options are those of `python -m cluster.sim`."""
    with tempfile.TemporaryDirectory(prefix="sim-") as folder:
        options = {
            "vast": 0,
            "runpod": 0,
            "boxes": "none",
            "boot": 0.3,
            "pace": 1000,
            "state": f"{folder}/state",
        } | options
        command = [sys.executable, "-m", "cluster.sim"]
        for name, value in options.items():
            for one in value if isinstance(value, list) else [value]:
                command += [f"--{name.replace('_', '-')}", *([] if one is True else [str(one)])]
        output = f"{folder}/output"
        with open(output, "w") as file:
            process = subprocess.Popen(command, cwd=REPO, stdout=file, stderr=subprocess.STDOUT)
        try:
            give_up = time.time() + PATIENCE
            while "Ctrl-C" not in (text := Path(output).read_text()):
                assert process.poll() is None and time.time() < give_up, text
                time.sleep(0.05)
            yield Sim(process, dict(re.findall(r"export (\w+)=(\S+)", text)), output)
        finally:
            process.terminate()
            process.wait(PATIENCE)


@pytest.fixture
def sim(request):
    """A simulator without boxes. @pytest.mark.parametrize("sim", [{"boxes": "namespaces", …}], indirect=True) gives one with boxes,
    which needs e2e.NAMESPACES."""
    with simulator(**getattr(request, "param", {})) as started:
        yield started


@pytest.fixture(scope="session")
def shared():
    """A folder that every machine of an end-to-end test shares; runs are stored there, as in a bucket."""
    with tempfile.TemporaryDirectory(prefix="shoestring-shared-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def boxes(shared):
    """A simulator with real boxes that share no network."""
    with simulator(boxes="namespaces", network="isolated", boot=1.0, pace=100, share=shared, realistic=True) as started:
        yield started


@pytest.fixture
def apart(tmp_path):
    """(laptop, boxes, shared folder) for one test only, so that the simulator's bill is that of this test's cluster."""
    with (
        tempfile.TemporaryDirectory(prefix="shoestring-shared-", dir="/tmp") as folder,
        simulator(boxes="namespaces", network="isolated", boot=1.0, pace=100, share=folder, realistic=True) as boxes,
    ):
        made = boxes.laptop(tmp_path / "laptop", Path(folder))
        yield made, boxes, Path(folder)
        if made.process.poll() is None:
            made.close()


@pytest.fixture(scope="session")
def undisturbed(shared, tiny_model, chats_file, tmp_path_factory):
    """(options of a job, model_sha256 of its run on two workers of this machine)"""
    from lib.run import Run
    from tests.cluster.e2e import options

    given, run = options(shared, tiny_model, chats_file), tmp_path_factory.mktemp("alone") / "run"
    done = run_job("sft", *given, "--run", run)
    assert done.returncode == 0, done.stderr
    return given, Run(str(run)).provenance()["model_sha256"]


@pytest.fixture
def both():
    from tests.cluster.apis import Both

    made = Both()
    with made.vast:  # the event loop in which rentals boot
        made.runpod.portal = made.vast.portal
        yield made


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds) advances the world's time, which otherwise stands still."""
    from cluster.sim import world

    now = [1_800_000_000.0]
    monkeypatch.setattr(world.time, "time", lambda: now[0])

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


@pytest.fixture
def provider(sim, tmp_path, monkeypatch):
    """make() → a Provider of the same cluster, as in another process."""
    monkeypatch.setenv("SHOESTRING_STATE", str(tmp_path))
    monkeypatch.setenv("SHOESTRING_PACE", "1000")
    for name in ("VAST", "RUNPOD"):
        monkeypatch.setenv(f"{name}_URL", sim.env[f"{name}_URL"])
        monkeypatch.setenv(f"{name}_API_KEY", sim.env[f"{name}_API_KEY"])
    monkeypatch.setattr("cluster.provider.STALE_S", 0.0)
    monkeypatch.setattr("cluster.provider.WAIT_S", 0.05)

    def make(**settings):
        from cluster.provider import Provider

        return Provider(complete(cluster(**settings))["provider"], "c1")

    return make
