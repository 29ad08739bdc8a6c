"""Every YAML in cluster/ is valid for Ray, checked as by `ray up` before it rents."""

import os
import subprocess

import pytest
import yaml
from ray.autoscaler.sdk import bootstrap_config

from cluster.node import config_schema
from tests.conftest import REPO

YAMLS = sorted((REPO / "cluster").glob("*.yaml"))


@pytest.mark.parametrize("path", YAMLS, ids=[p.stem for p in YAMLS])
def test_ray_takes_it(path):
    config = bootstrap_config(yaml.safe_load(path.read_text()), no_config_cache=True)
    config_schema.check(config)
    for who in ("head", "worker"):
        assert any("ray start" in command for command in config[f"{who}_start_ray_commands"])
        assert "RAY_grpc_client_keepalive_time_ms" in " ".join(config[f"{who}_start_ray_commands"])


def test_the_heads_copy_is_read_to_the_same():
    """Ray processes on the head what it already processed on the laptop: no command may appear twice."""
    config = yaml.safe_load((REPO / "cluster/vast.yaml").read_text()) | {"setup_commands": ["echo mine"]}
    first = bootstrap_config(config, no_config_cache=True)
    assert first["worker_setup_commands"][1:] == ["echo mine"]
    again = bootstrap_config(first, no_config_cache=True)
    assert again["worker_setup_commands"] == [first["worker_setup_commands"][0], *first["worker_setup_commands"]]


@pytest.mark.parametrize("who", ["head", "worker"])
@pytest.mark.parametrize(("failures", "code", "tries"), [(0, 0, 1), (2, 0, 3), (3, 1, 3)])
def test_a_slow_host_has_three_tries_to_start_ray(who, failures, code, tries, tmp_path):
    config = bootstrap_config(yaml.safe_load((REPO / "cluster/vast.yaml").read_text()), no_config_cache=True)
    ray = tmp_path / "ray"
    ray.write_text(f"#!/bin/sh\n[ $1 = start ] || exit 0\necho >> $0.log\n[ $(wc -l < $0.log) -gt {failures} ]\n")
    ray.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", "-c", config[f"{who}_start_ray_commands"][-1]]
    assert subprocess.run(command, env=env, capture_output=True).returncode == code
    assert len((tmp_path / "ray.log").read_text().splitlines()) == tries
