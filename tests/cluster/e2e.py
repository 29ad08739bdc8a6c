"""Common parts of the end-to-end tests: a cluster's YAML, a job that loses a worker halfway, and the checks of its result."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from cluster.sim.box import why_not
from lib.run import Run
from lib.runtime import checkpoint
from tests.cluster.conftest import Sim
from tests.cluster.laptop import Laptop
from tests.conftest import PATIENCE, REPO

NAMESPACES = pytest.mark.skipif(bool(reason := why_not()), reason=reason or "")
DASHBOARD = "http://127.0.0.1:8265"
SFT = {
    "train.max_steps": 60, "train.save_steps": 10, "train.logging_steps": 10, "train.learning_rate": 1e-3,
    "scale.global_batch": 8, "scale.micro_batch": 4, "scale.workers": 2,
}  # fmt: skip
NAP = """
import ray, time
ray.init(address="auto", log_to_driver=False)
@ray.remote(num_cpus=1)
def nap():
    time.sleep(600)
ray.get([nap.remote() for _ in range(2)])
"""


def took(what: str, since: float) -> None:
    print(f"\n{what}: {time.time() - since:.1f} s", end="", flush=True)


def spots(state: dict) -> list[str]:
    """Returns the ids of the running workers."""
    return [r["id"] for r in state["rentals"] if r["state"] == "running" and r["count"]]


def wait_for_nodes(laptop: Laptop, count: int) -> None:
    """Waits until the head has this many living Ray nodes. One process polls, since importing Ray takes seconds."""
    code = (
        "import ray, time; ray.init(address='auto', logging_level='ERROR')\n"
        f"while sum(n['Alive'] for n in ray.nodes()) < {count}: time.sleep(0.2)"
    )
    said = laptop.run(sys.executable, "-c", code)
    assert said.returncode == 0, said.stderr


def cluster(market: str, **changes) -> dict:
    ladder = [{"market": market, "gpus": ["RTX 4090", "RTX 3090", "RTX A5000"], "max_usd_per_hour": 0.6}]
    provider = {
        "type": "external",
        "module": "cluster.provider.Provider",
        "markets": [market],
        "image": "shoestring-sim",
    }
    return {
        "cluster_name": f"e2e-{market}", "max_workers": 2, "idle_timeout_minutes": 0.2, "provider": provider,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": {}},
            "box": {"resources": {"CPU": 1}, "node_config": {"ladder": ladder}},
        },
    } | changes  # fmt: skip


@contextmanager
def leading(laptop: Laptop, shared: Path, ladder: list[dict] | None = None, max_workers: int = 2, **provider):
    """Runs `python -m cluster head` on the laptop during the block."""
    settings = cluster("vast", idle_timeout_minutes=2, max_workers=max_workers)
    settings["provider"] |= provider
    if ladder:
        settings["available_node_types"]["box"]["node_config"]["ladder"] = ladder
    config = shared / "head.yaml"
    config.write_text(yaml.safe_dump(settings))
    command = (sys.executable, "-m", "cluster", "head", "--config", config)
    process = laptop.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if "end it" in line:
            break
    assert process.poll() is None
    try:
        yield process
    finally:
        if laptop.process.poll() is None:
            laptop.run(*command, "--stop")
        process.communicate(timeout=PATIENCE)


def submit(laptop: Laptop, *command, **kwargs) -> subprocess.Popen:
    """Starts `ray job submit`, which prints the job's output until it ends."""
    said = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | kwargs
    return laptop.start("ray", "job", "submit", "--address", DASHBOARD, *map(str, command), **said)


class Submitted:
    """A job of `ray job submit` that is polled, so that no long-lived connection is needed."""

    def __init__(self, laptop: Laptop, *command: str | Path):
        self.laptop = laptop
        said = laptop.run("ray", "job", "submit", "--address", DASHBOARD, "--no-wait", *command)
        assert said.returncode == 0, said.stdout + said.stderr
        self.id = re.search(r"raysubmit_\w+", said.stdout)[0]

    def _ask(self, what: str = "") -> dict:
        """Calls Ray's REST API for jobs; returns {} if it doesn't answer. `ray job status` would take seconds of CPU per call."""
        said = self.laptop.run("curl", "-sf", "-m", "20", f"{DASHBOARD}/api/jobs/{self.id}{what}")
        return json.loads(said.stdout) if said.returncode == 0 else {}

    def status(self) -> str | None:
        return self._ask().get("status")

    def logs(self) -> str:
        return self._ask("/logs").get("logs", "")

    def wait(self, seconds: float) -> str:
        """Waits until the job succeeds and returns its logs."""
        give_up = time.time() + seconds
        while (status := self.status()) in ("PENDING", "RUNNING", None):
            assert time.time() < give_up, self.logs()
            time.sleep(0.5)
        logs = self.logs()
        assert status == "SUCCEEDED", logs
        return logs


def options(shared: Path, model: str, data: str) -> list[str]:
    """Options of jobs/sft.py: two workers, a tiny model, 60 steps. Copies model and data to a folder that every node sees."""
    for path in map(Path, (model, data)):
        if not (shared / path.name).exists():
            (shutil.copytree if path.is_dir() else shutil.copy)(path, shared / path.name)
    given = SFT | {"model.base": shared / Path(model).name, "data.source": shared / Path(data).name}
    return [f"--{key}={value}" for key, value in given.items()]


def code(shared: Path) -> Path:
    """Returns the code that `--working-dir .` would send."""
    folder = shared / "code"
    for package in ("jobs", "lib"):
        shutil.copytree(REPO / package, folder / package, dirs_exist_ok=True)
    return folder


def lost_in_the_middle(laptop: Laptop, sim: Sim, shared: Path, options: list[str], cluster: str, fault: str) -> str:
    """Submits the job and, after the first checkpoint, loses one of its two workers through that control of the simulator. Returns the
    finished run's model_sha256."""
    run = Run(tempfile.mkdtemp(prefix="run-", dir=shared) + "/run")  # other tests also have a cluster of this name
    began = time.time()
    job = Submitted(laptop, "--working-dir", code(shared), "--", "python", "jobs/sft.py", *options, "--run", run.path)
    sim.wait(lambda state: len(spots(state)) == 2)
    took("2 workers rented and running", began)
    while not checkpoint.steps(run) or checkpoint.damage(run, checkpoint.steps(run)[0]):
        assert time.time() < began + PATIENCE, job.logs()
        time.sleep(0.05)
    took("first checkpoint", began)
    assert secrets_on(sim, spots(sim.state()), laptop, cluster) == []
    victim, lost = spots(sim.state())[0], time.time()
    sim.control(fault, id=victim)
    assert run.provenance()["status"] == "running"
    sim.wait(lambda state: all(r["id"] != victim for r in state["rentals"]))
    took(f"{fault} → destroyed", lost)
    sim.wait(lambda state: len(spots(state)) == 2)
    took(f"{fault} → replaced", lost)
    while run.provenance()["status"] != "finished":
        assert time.time() < lost + PATIENCE, job.logs()
        time.sleep(0.2)
    took(f"{fault} → job done", lost)
    said = job.wait(PATIENCE)
    assert re.search(r"from step [1-5]0 on 2 ", said), said
    return run.provenance()["model_sha256"]


def processes(sim: Sim, ids: list[str]) -> dict[str, list[int]]:
    """Returns {id: pids of all processes} of these rented boxes."""
    found = {}
    for rental in sim.state()["rentals"]:
        if rental["id"] in ids:
            _, _, n, k = rental["address"].split(".")
            listed = ["ip", "netns", "pids", f"ss{n}-{k}"]
            said = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
            found[rental["id"]] = [int(pid) for pid in said.split()]
    return found


def secrets_on(sim: Sim, ids: list[str], laptop: Laptop, cluster: str) -> list[str]:
    """Returns where these boxes' disks, command lines or environments contain an account's key or the cluster's private key."""
    # The first two lines are the same in every key.
    private = (laptop.home / ".shoestring" / cluster / "key").read_text().splitlines()[3]
    keys = [sim.env["VAST_API_KEY"], sim.env["RUNPOD_API_KEY"], private]
    found = []
    for id, pids in processes(sim, ids).items():
        disk = Path(sim.output).parent / "state/boxes" / id
        assert (disk / "home").is_dir()
        grep = [
            "grep",
            "-rlF",
            *(part for key in keys for part in ("-e", key)),
            str(disk / "home"),
            str(disk / "tmp"),
            str(disk / "upper"),
        ]
        found += subprocess.run(grep, capture_output=True, text=True).stdout.split()
        assert len(pids) > 5
        for pid in pids:
            for name in ("cmdline", "environ"):
                try:
                    text = Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
                except (FileNotFoundError, ProcessLookupError):
                    continue
                found += [f"{name}: {text}" for key in keys if key in text]
    return found
