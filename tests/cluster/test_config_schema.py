"""cluster/node/config_schema.py: mistakes in a cluster's YAML, in `python -m cluster head` and in `ray up`."""

import subprocess
import sys

import pytest
import yaml

from cluster.head import main
from cluster.node import config_schema
from tests.cluster.e2e import cluster
from tests.conftest import PATIENCE, REPO

TYPES = cluster("vast")["available_node_types"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"idle_timout_minutes": 5}, "idle_timout_minutes is not a key of a cluster. Did you mean idle_timeout_minutes?"),
        ({"budget": {"total_usd": 1}}, "budget is not a key of a cluster. Did you mean provider.budget?"),
        ({"max_workers": "four"}, "max_workers: must be a whole number, is 'four'."),
        ({"provider": None}, "provider: must be a section of keys, is empty."),
        ({"available_node_types": {"head": None}}, "available_node_types.head: must be a section of keys, is empty."),
        (
            {"available_node_types": TYPES | {"box": TYPES["box"] | {"max_worker": 2}}},
            "available_node_types.box.max_worker is not a key of a cluster. Did you mean available_node_types.box.max_workers",
        ),
        (
            {"available_node_types": TYPES | {"box": TYPES["box"] | {"disk_gb": 60}}},
            "available_node_types.box.disk_gb is not a key of a cluster. Did you mean available_node_types.box.node_config.disk_gb?",
        ),
        (
            {"available_node_types": TYPES | {"box": TYPES["box"] | {"resources": {"GPU": 0.5}}}},
            "available_node_types.box.resources.GPU: must be a whole number, is 0.5.",
        ),
        ({"available_node_types": TYPES | {"box": {"resources": {}}}}, "there is no available_node_types.box.node_config."),
        ({"head_node_type": "haed"}, "head_node_type: haed is not in available_node_types. Nearest: head."),
        ({"provider": cluster("vast")["provider"] | {"markets": ["vats"]}}, "provider.markets: there is no market vats. Nearest: vast."),
    ],
)  # fmt: skip
def test_each_mistake_by_its_key(change, message):
    with pytest.raises(ValueError) as refused:
        config_schema.check(cluster("vast") | change)
    assert str(refused.value).startswith(message)


def test_all_of_them_at_once():
    config = cluster("vast") | {"idle_timout_minutes": 5, "max_workers": "four"}
    del config["cluster_name"]
    with pytest.raises(ValueError) as refused:
        config_schema.check(config)
    assert [line.split()[:2] for line in str(refused.value).splitlines()] == [
        ["there", "is"],
        ["idle_timout_minutes", "is"],
        ["max_workers:", "must"],
    ]


def test_ray_up_says_the_same_and_not_its_schema(tmp_path):
    empty = {"setup_commands": [], "head_setup_commands": [], "worker_setup_commands": []}
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(cluster("vast") | empty | {"idle_timout_minutes": 5}))
    command = [sys.executable, "-m", "ray.scripts.scripts", "up", "-y", "--no-config-cache", path]
    said = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)
    assert said.returncode == 2
    assert said.stderr.splitlines()[-2:] == [
        "The cluster can't be led from here:",
        "  idle_timout_minutes is not a key of a cluster. Did you mean idle_timeout_minutes?",
    ]
    assert "jsonschema" not in said.stdout + said.stderr and "Traceback" not in said.stderr


def test_a_machine_without_ssh(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        main(["--config", "cluster/vast.yaml"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "ssh and ssh-keygen" in said and "apt-get install gcc openssh-client" in said
