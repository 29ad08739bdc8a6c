"""cluster/lost.py: a node that went dark is dead for Ray as soon as it is told, not after the health checks."""

import os
import signal
import time

import pytest

from tests.conftest import PATIENCE


@pytest.mark.slow
def test_a_dark_node_is_dead_as_soon_as_ray_is_told(monkeypatch):
    from ray._raylet import GcsClient
    from ray.autoscaler.v2.sdk import get_cluster_resource_state
    from ray.cluster_utils import Cluster
    from ray.core.generated.autoscaler_pb2 import NodeStatus

    from cluster import lost

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    never = {"health_check_initial_delay_ms": 3_600_000}  # so that only what it is told can end the node
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": never}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    dark = cluster.add_node(num_cpus=1, env_vars={"RAY_CLOUD_INSTANCE_ID": "vast-1"})
    [raylet] = dark.all_processes["raylet"]
    try:
        alive = lambda: [  # noqa: E731
            n
            for n in get_cluster_resource_state(GcsClient(address=cluster.address)).node_states
            if n.status != NodeStatus.DEAD
        ]
        os.kill(raylet.process.pid, signal.SIGSTOP)
        told = time.monotonic()
        assert lost.tell(cluster.address, {"vast-2"}) == 0
        assert lost.tell(cluster.address, {"vast-1", "vast-2"}) == 1
        while len(alive()) > 1:
            assert time.monotonic() < told + PATIENCE
        assert lost.tell(cluster.address, {"vast-1"}) == 0
    finally:
        os.kill(raylet.process.pid, signal.SIGCONT)
        cluster.shutdown()
