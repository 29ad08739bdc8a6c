"""Every YAML in cluster/ is valid for Ray, checked as by `ray up` before it rents."""

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
