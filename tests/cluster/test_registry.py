"""A private image: its registry's login reaches the market, but neither the YAML nor the commands on the machine contain it."""

import pytest

from cluster.node.autoscaler_config import complete
from tests.cluster.nodes import WORKER, cluster

VAST = {"market": "vast", "gpus": ["RTX 4090"], "spot": False, "max_usd_per_hour": 0.6}
RUNPOD = {"market": "runpod", "gpus": ["RTX 4090"], "spot": False, "max_usd_per_hour": 0.8}
PRIVATE = {"image": "private.example/mine:1", "registry": "private.example", "runpod_registry": "reg_private"}


def test_a_private_image_is_pulled_by_both_markets(provider, sim, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "shoestring").mkdir()
    login = tmp_path / "shoestring/registry_api_key"
    login.write_text("me:secret\n")
    p = provider(**PRIVATE)
    with pytest.raises(ValueError, match=r"others can read .*registry_api_key.*chmod 600"):
        p.create_node({"ladder": [VAST]}, WORKER, 1)
    login.chmod(0o600)
    p.create_node({"ladder": [VAST]}, WORKER, 1)
    p.create_node({"ladder": [RUNPOD]}, WORKER, 1)
    sim.wait(lambda s: [r["state"] for r in s["rentals"]] == ["running"] * 2)
    assert "secret" not in str(complete(cluster(**PRIVATE)))
    p.end()

    monkeypatch.setenv("REGISTRY_API_KEY", "me:wrong")
    provider(**PRIVATE).create_node({"ladder": [VAST]}, WORKER, 1)
    said = "Error response from daemon: pull access denied for private.example/mine:1"
    sim.wait(lambda s: [(r["state"], r["why"]) for r in s["rentals"]] == [("loading", said)])
    monkeypatch.setenv("REGISTRY_API_KEY", "secret")
    with pytest.raises(ValueError, match="must be USER:TOKEN"):
        provider(**PRIVATE).create_node({"ladder": [VAST]}, WORKER, 1)


def test_runpods_login_is_kept_by_runpod():
    with pytest.raises(ValueError, match=r"provider\.registry: RunPod stores.*runpod_registry"):
        complete(cluster(image="private.example/mine:1", registry="private.example"))
