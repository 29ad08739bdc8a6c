"""A head on a laptop behind a router, and spot boxes that share no network with it or each other: a real job, an outbid, dark."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lib import checkpoint
from lib.run import Run
from tests.cluster.conftest import simulator
from tests.cluster.laptop import Laptop
from tests.conftest import REPO, run_job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="namespaces need root and iproute2"),
]
DASHBOARD = "http://127.0.0.1:8265"
SFT = {
    "train.max_steps": 60, "train.save_steps": 10, "train.logging_steps": 10, "train.learning_rate": 1e-3,
    "scale.global_batch": 8, "scale.micro_batch": 4, "scale.workers": 2,
}  # fmt: skip
SLEEP = """
import ray, sys, time
ray.init(address="auto", log_to_driver=False)
@ray.remote(num_cpus=1, max_retries=5)
def nap(seconds):
    time.sleep(seconds)
    return time.time()
print("ENDED", max(ray.get([nap.remote(float(sys.argv[1])) for _ in range(2)])))
"""


def took(what: str, since: float) -> None:
    print(f"\n{what}: {time.time() - since:.1f} s", end="", flush=True)


def running(state: dict) -> list[str]:
    return [r["id"] for r in state["rentals"] if r["state"] == "running"]


def alive(laptop: Laptop) -> int:
    """Ray nodes that the head knows."""
    said = laptop.run(sys.executable, "-c", "import ray; ray.init(address='auto', logging_level='ERROR'); print('ALIVE', sum(n['Alive'] for n in ray.nodes()))")  # fmt: skip
    return int(re.search(r"ALIVE (\d+)", said.stdout)[1])


@pytest.fixture(scope="module")
def shared():
    """A folder that the laptop and every box see: where runs are kept, as a bucket would be."""
    folder = Path(f"/tmp/shoestring-shared-{os.getpid()}")
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def sim(shared):
    with simulator(boxes="namespaces", network="isolated", boot=1.0, pace=100, share=shared) as started:
        yield started


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


@pytest.fixture(scope="module")
def laptop(sim, shared, tmp_path_factory):
    """With a head that runs."""
    public = re.search(r"//([\d.]+):", sim.vast_url)[1]
    env = sim.env | {"SHOESTRING_PACE": "100"}
    box = Laptop(tmp_path_factory.mktemp("laptop"), public, env, shared)
    config = shared / "cluster.yaml"
    config.write_text(yaml.safe_dump(cluster("runpod")))
    command = (sys.executable, "-m", "cluster", "head", "--config", config)
    began = time.time()
    head = box.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in head.stdout:
            if "end it" in line:
                break
        assert head.poll() is None
        took("cluster head", began)
        yield box
    finally:
        began = time.time()
        stopped = box.run(*command, "--stop")
        said = head.communicate(timeout=60)[0]
        took("cluster head --stop", began)
        shutil.copytree(box.home / ".shoestring", "/tmp/prov/home", dirs_exist_ok=True)
        box.close()
    assert stopped.returncode == 0 and head.returncode == 0, said + stopped.stderr
    assert sim.state()["rentals"] == []


def submit(laptop: Laptop, *command, **kwargs) -> subprocess.Popen:
    said = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | kwargs
    return laptop.start("ray", "job", "submit", "--address", DASHBOARD, *map(str, command), **said)


def test_two_workers_an_outbid_in_the_middle_and_the_same_bits(laptop, sim, shared, tiny_model, chats_file, tmp_path):
    for path in (tiny_model, chats_file):
        there = shared / Path(path).name
        shutil.copytree(path, there) if Path(path).is_dir() else shutil.copy(path, there)
    model, data = shared / Path(tiny_model).name, shared / Path(chats_file).name
    options = [f"--{k}={v}" for k, v in (SFT | {"model.base": model, "data.source": data}).items()]
    run = Run(str(shared / "run"))
    began = time.time()
    code = shared / "code"  # what `--working-dir .` sends of a checkout
    for package in ("jobs", "lib"):
        shutil.copytree(REPO / package, code / package)
    job = submit(laptop, "--working-dir", code, "--", "python", "jobs/sft.py", *options, "--run", run.path)
    sim.wait(lambda state: len(running(state)) == 2, 120)
    took("2 workers rented and running", began)
    while not checkpoint.steps(run) or checkpoint.damage(run, checkpoint.steps(run)[0]):
        assert job.poll() is None and time.time() < began + 240, job.stdout.read()
        time.sleep(0.05)
    took("first checkpoint", began)
    victim, fault = running(sim.state())[0], time.time()
    sim.control("outbid", id=victim)
    assert run.provenance()["status"] == "running"
    sim.wait(lambda state: all(r["id"] != victim for r in state["rentals"]), 30)
    took("outbid → destroyed", fault)
    sim.wait(lambda state: len(running(state)) == 2, 30)
    took("outbid → replaced", fault)
    said, _ = job.communicate(timeout=300)
    assert job.returncode == 0, said
    took("outbid → job done", fault)
    assert re.search(r"from step [1-5]0 on 2 ", said), said
    print(re.findall(r"from step \d+ on.*", said))
    alone = run_job("sft", *options, "--run", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    same = Run(str(tmp_path / "alone")).provenance()["model_sha256"]
    assert run.provenance()["model_sha256"] == same
    sim.wait(lambda state: state["rentals"] == [], 90)  # idle


def test_a_host_that_goes_dark_is_replaced_and_its_task_tried_again(laptop, sim, shared):
    (shared / "nap.py").write_text(SLEEP)
    job = submit(laptop, "--", "python", shared / "nap.py", 5)
    sim.wait(lambda state: len(running(state)) == 2, 120)
    give_up = time.time() + 120
    while alive(laptop) < 3:
        assert time.time() < give_up
    fault = time.time()
    victim = running(sim.state())[0]
    sim.control("dark", id=victim)
    sim.wait(lambda state: all(r["id"] != victim for r in state["rentals"]), 60)
    took("dark → destroyed", fault)
    sim.wait(lambda state: len(running(state)) == 2, 60)
    took("dark → replaced", fault)
    said, _ = job.communicate(timeout=180)
    assert job.returncode == 0, said
    took("dark → its task tried again and done", fault)
