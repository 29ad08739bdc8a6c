"""Every YAML in cluster/ is one that Ray takes, checked as `ray up` does before it rents."""

import pytest
import yaml
from ray.autoscaler._private.providers import _NODE_PROVIDERS
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.conftest import REPO

YAMLS = sorted((REPO / "cluster").glob("*.yaml"))


@pytest.mark.parametrize("path", YAMLS, ids=[p.stem for p in YAMLS])
def test_ray_takes_it(path):
    config = prepare_config(yaml.safe_load(path.read_text()))
    provider = _NODE_PROVIDERS[config["provider"]["type"]](config["provider"])
    config = provider.fillout_available_node_types_resources(config)
    validate_config(config)
    config = provider.bootstrap_config(config)
    validate_config(config)
    for who in ("head", "worker"):
        assert any("ray start" in command for command in config[f"{who}_start_ray_commands"])
        assert "RAY_grpc_client_keepalive_time_ms" in " ".join(config[f"{who}_start_ray_commands"])


def test_the_heads_copy_is_read_to_the_same():
    """Ray prepares on the head what it prepared on the laptop: no command may come twice."""
    provider = _NODE_PROVIDERS["external"]({"module": "cluster.provider.Provider"})
    config = yaml.safe_load((REPO / "cluster/vast.yaml").read_text()) | {"setup_commands": ["echo mine"]}
    first = provider.bootstrap_config(prepare_config(config) | {"cluster_synced_files": []})
    assert first["worker_setup_commands"][1:] == ["echo mine"]
    assert prepare_config(first)["worker_setup_commands"] == first["worker_setup_commands"]
