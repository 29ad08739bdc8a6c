"""cluster/node/driver.py: the CUDA version that the nodes' torch needs of a driver, and the message about a box whose GPUs it can't use."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from cluster.node import autoscaler_config, driver
from cluster.sim import catalogue, smi
from cluster.sim.rental import Order
from tests.cluster.nodes import cluster

GOOD = {
    "simulated": False, "driver": "580.65.06", "cuda": 13.0, "gpus": 1, "torch": "2.13.0", "torch_cuda": "13.0", "torch_error": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "torch", "said"),
    [
        ({}, None, None),
        ({"cuda": 13.2, "driver": "595.1"}, None, None),
        ({"cuda": 12.8, "driver": "570.86.15"}, None, "its driver 570.86.15 supports CUDA 12.8, and torch 2.13.0 needs CUDA 13.0. "
         "Rent only hosts with newer drivers (min_cuda: 13.0 in the rung), or use torch for older drivers (provider.torch: cu129)"),
        ({"cuda": 12.4, "torch": "2.13.0+cu129", "torch_cuda": "12.9"}, "cu129", None),  # a minor version doesn't matter
        ({"cuda": 11.8, "driver": "520.61.05", "torch": "2.13.0+cu129", "torch_cuda": "12.9"}, "cu129",
         "its driver 520.61.05 supports CUDA 11.8, and torch 2.13.0+cu129 needs CUDA 12.0. Rent only hosts with newer drivers (min_cuda: 12.0 in the rung)"),
        ({"torch": "2.13.0+cpu", "torch_cuda": None, "torch_error": "not compiled with CUDA"}, None,
         "its torch 2.13.0+cpu was built without CUDA"),
        ({"smi_error": "No such file"}, None, "it was rented with a GPU, but nvidia-smi finds no driver in it: No such file"),
        ({"torch_error": "CUDA error: no kernel image is available"}, None,
         "torch 2.13.0 can't use its GPU (driver 580.65.06): CUDA error: no kernel image is available"),
        ({"gpus": 0}, None, "it was rented with 1 GPUs, but nvidia-smi lists 0"),
        # A simulated box is asked for its driver alone.
        ({"simulated": True, "torch": "2.13.0+cpu", "torch_cuda": None, "torch_error": "not compiled with CUDA"}, None, None),
        ({"simulated": True, "cuda": 12.2, "torch": "2.13.0+cpu", "torch_cuda": None}, None, "needs CUDA 13.0"),
        ({"simulated": True, "cuda": 12.2, "torch": "2.13.0+cpu", "torch_cuda": None}, "cu129", None),
    ],
)  # fmt: skip
def test_what_is_said_of_a_box(change, torch, said):
    why = driver.complaint(GOOD | change, 1, torch)
    assert why is None if said is None else said in why


def test_the_probe_reads_nvidia_smi_and_asks_torch(tmp_path):
    """With the real programs and this machine's torch, except nvidia-smi, which is the simulator's."""
    machine = next(m for m in catalogue.machines(0) if m.count == 4)
    order = Order("", "", 1, 4, 1, False, 0, 0, {}, [], "", [])
    program = tmp_path / "nvidia-smi"
    env = {k: v for k, v in os.environ.items() if k != "SHOESTRING_SIMULATED"} | {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    }

    def probe() -> dict:
        said = subprocess.run(
            [sys.executable, "-"], input=driver.PROBE.read_bytes(), env=env, capture_output=True, check=True
        )
        return json.loads(said.stdout)

    program.write_text(smi.program(replace(machine, cuda=12.8), order))
    program.chmod(0o755)
    report = probe()
    assert report["driver"] == "570.86.15" and report["cuda"] == 12.8 and report["gpus"] == 4
    assert report["torch"].startswith("2.") and report["torch_error"] and not report["simulated"]
    assert driver.complaint(report | {"torch_cuda": "13.0"}, 4, None).startswith(
        "its driver 570.86.15 supports CUDA 12.8"
    )
    program.write_text(
        "#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'\nexit 9\n"
    )
    assert "could not communicate" in driver.complaint(probe(), 4, None)


def test_offers_are_asked_for_the_driver_that_torch_needs():
    """In rungs of node types whose GPUs jobs use, unless a rung has its own min_cuda."""

    def asked(**provider) -> list:
        config = cluster(**provider)
        ladder = config["available_node_types"]["gpu"]["node_config"]["ladder"]
        config["available_node_types"]["gpu"]["node_config"]["ladder"] = [
            ladder[0], ladder[1] | {"min_cuda": 12.6}, {"market": "vast", "count": 0, "max_usd_per_hour": 1},
        ]  # fmt: skip
        types = autoscaler_config.complete(config)["available_node_types"]
        return [row.get("min_cuda") for name in ("head", "gpu") for row in types[name]["node_config"]["ladder"]]

    assert asked() == [None, 13.0, 12.6, None]
    assert asked(torch="cu129") == [None, 12.0, 12.6, None]
    assert "--torch-backend" in autoscaler_config.install("cu129") and " cu129 " in autoscaler_config.install("cu129")
    with pytest.raises(ValueError, match=r"provider\.torch must be a CUDA build of torch.*but is 'cu13'"):
        asked(torch="cu13")
