"""lib/runtime/device.py: chooses a job's device by the resources its cluster can have, and reports a GPU that can't be used."""

import os
import subprocess
import time

import pytest
import torch

from lib.config.job import Scale
from lib.run import Run
from lib.runtime import device
from lib.runtime.failure import explain
from lib.runtime.node_types import NodeType
from tests import warm
from tests.conftest import PATIENCE, REPO

HEAD = NodeType("head", {"CPU": 0}, 1)
BOX = NodeType("box", {"CPU": 4}, 2)
GPU = NodeType("gpu", {"CPU": 8, "GPU": 1}, 4)
UP = NodeType("10.0.0.1", {"CPU": 4, "memory": 1e9}, 1)


@pytest.mark.parametrize(
    ("scale", "types", "published", "gpu", "why"),
    [
        ({}, [HEAD, GPU], True, True, "GPU, available on nodes of type gpu; to use CPUs: --scale.device cpu"),
        ({}, [HEAD, BOX, GPU], True, True, "nodes of type gpu"),
        ({"device": "cpu"}, [HEAD, BOX, GPU], True, False, "CPU, as set by scale.device"),
        (
            {},
            [HEAD, BOX],
            True,
            False,
            "no node of this cluster has a GPU: head {CPU: 0, GPU: 0}, box {CPU: 4, GPU: 0}",
        ),
        ({}, [UP], False, False, "to wait for a GPU: --scale.device gpu"),
        ({"device": "gpu"}, [UP], False, True, "GPU, as set by scale.device"),
        (
            {"workers": 40, "global_batch": 40, "micro_batch": 1},
            [UP],
            False,
            False,
            "no running node",
        ),  # it may grow
        ({"workers": 4, "global_batch": 4, "micro_batch": 1}, [HEAD, GPU], True, True, "GPU"),
    ],
)
def test_auto_is_settled_by_what_the_cluster_can_have(scale, types, published, gpu, why):
    settled = device._on(Scale(**scale), types, published)
    assert settled.gpu is gpu and why in settled.why


@pytest.mark.parametrize(
    ("scale", "types", "message"),
    [
        ({"device": "gpu"}, [HEAD, BOX], r"scale\.device: gpu, but no node of this cluster has one: head .*resources: {GPU: 1}"),
        ({"workers": 5}, [HEAD, GPU], r"scale\.workers: 5 are needed, and this cluster has room for 4.*4 × gpu .*max_workers"),
        ({"workers": 9, "min_workers": 5}, [HEAD, GPU], r"scale\.min_workers: 5 are needed"),
        ({"cpus_per_worker": 9}, [HEAD, GPU], r"scale\.cpus_per_worker: no node .* has 9 CPU cores beside a GPU: gpu .*Use 8, or train on CPUs"),
        ({"cpus_per_worker": 5}, [HEAD, BOX], r"scale\.cpus_per_worker: no node .* has 5 CPU cores: .*Use 4\."),
    ],
)  # fmt: skip
def test_workers_that_fit_nowhere_are_refused(scale, types, message):
    with pytest.raises(ValueError, match=message):
        device._on(Scale(**scale), types, True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU that can be used")
def test_why_a_gpu_cannot_be_used():
    why = device.unusable()
    for words in ("was given a GPU that torch", torch.__version__, "CUDA", "--scale.device cpu"):
        assert words in why
    assert explain(device.StopTraining(why)) == why and "\n" not in why


def test_the_driver_by_its_kernel_module(tmp_path, monkeypatch):
    file = tmp_path / "version"
    monkeypatch.setattr(device, "Path", lambda name: file)
    assert device.driver() is None
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC …")
    assert device.driver() == "535.183.01"
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs)")
    assert device.driver() == "580.95.05"


RAY = """
import sys, threading
from lib.runtime.gcs import Gcs
from ray.cluster_utils import Cluster
from lib.runtime import node_types

head = {"num_cpus": 1, "include_dashboard": False, "env_vars": {"RAY_NODE_TYPE_NAME": "head"}}
cluster = Cluster(initialize_head=True, head_node_args=head)
print(cluster.address, flush=True)
for line in sys.stdin:
    what = line.strip()
    if what == "publish":
        gpu = {"resources": {"CPU": 2, "GPU": 1}, "max_workers": 3}
        config = {"head_node_type": "head", "max_workers": 2, "available_node_types": {"head": {"resources": {"CPU": 1}}, "gpu": gpu}}
        node_types.publish(Gcs(cluster.address), config)
    if what == "node":
        cluster.add_node(num_cpus=2, num_gpus=1, env_vars={"RAY_NODE_TYPE_NAME": "gpu"})
    print(what, flush=True)
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU that can be used")
def test_a_cluster_that_has_only_its_head(tiny_model, chats_file, tmp_path):
    """A job waits for a GPU that the cluster can have and reports that, stops if torch can't use it, and trains on CPUs if told to."""
    argv = [
        "--model.base",
        tiny_model,
        "--data.source",
        chats_file,
        "--train.max_steps",
        "2",
        "--scale.global_batch",
        "4",
    ]
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {
        "RAY_AUTH_MODE": "disabled",
        "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9",  # as in connect(): this Ray has no API server
        "PYTHONUNBUFFERED": "1",
    }
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}

    def job(*more: str) -> subprocess.Popen:
        command = [warm.python(), "jobs/sft.py", *argv, *more]
        return subprocess.Popen(command, cwd=REPO, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    with subprocess.Popen([warm.python(), "-c", RAY], cwd=REPO, env=env, **pipes) as ray:
        env["RAY_ADDRESS"] = ray.stdout.readline().strip()

        def do(what: str) -> None:
            print(what, file=ray.stdin, flush=True)
            assert ray.stdout.readline() == f"{what}\n"

        try:
            # It waits until something is published.
            planned = job("--dry-run", "--run", str(tmp_path / "planned"))
            do("publish")
            said = planned.communicate(timeout=PATIENCE)[0]
            assert "GPU, available on nodes of type gpu; to use CPUs: --scale.device cpu" in said, said

            run, began = Run(str(tmp_path / "gpu")), time.time()
            waits = job("--run", run.path)
            for line in waits.stdout:
                if line.startswith("Waiting for 1 worker (1 GPU and 1 CPU core): no node is free"):
                    break
            assert waits.poll() is None and time.time() < began + PATIENCE
            do("node")
            said = waits.communicate(timeout=PATIENCE)[0]
            assert waits.returncode == 1 and not run.metrics(), said
            why = run.provenance()["failure"]
            assert "was given a GPU that torch" in why and "--scale.device cpu" in why, said
            assert why in said and "Traceback" not in said and "Waiting" not in said, said

            trained = job("--scale.device", "cpu", "--run", str(tmp_path / "cpu"))
            said = trained.communicate(timeout=PATIENCE)[0]
            assert trained.returncode == 0 and "CPU, as set by scale.device" in said, said
        finally:
            ray.stdin.close()
            ray.wait(timeout=PATIENCE)
