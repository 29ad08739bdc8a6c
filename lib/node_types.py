"""The kinds of nodes that a Ray cluster has or can have: a job knows by them what it will get, before any node is up.

A cluster's head publishes its node types in Ray's own place for them, the GCS's ClusterConfig (autoscaler.proto). Ray Train reads
that too, and refuses workers that these nodes could never hold.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path

from lib.gcs import NODE_TYPE, Gcs

PUBLISHED_S = 30.0
"""A head that has just started publishes its node types by then."""

silent: set[str] = set()
"""Clusters that were given that time in vain."""


@dataclass(frozen=True)
class NodeType:
    name: str
    resources: dict[str, float]
    """Of each node: {"CPU": 8, "GPU": 1}."""
    most: int
    """Nodes of it at one time."""

    def room(self, each: dict[str, float]) -> int:
        """Workers of `each` that one node holds."""
        return int(min(self.resources.get(what, 0) // amount for what, amount in each.items()))

    def __str__(self) -> str:
        shown = ", ".join(f"{what}: {self.resources.get(what, 0):g}" for what in ("CPU", "GPU"))
        return f"{self.name} {{{shown}}}"


def publish(gcs: Gcs, config: dict) -> None:
    """Writes the node types of a cluster's configuration (as Ray completes it) for every job."""
    from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

    groups, at_once = [], config.get("max_workers", 0)
    for name, node in config["available_node_types"].items():
        most = min(node.get("max_workers", at_once), at_once) + (name == config["head_node_type"])
        resources = {k: int(v) for k, v in (node.get("resources") or {}).items()}
        groups.append(NodeGroupConfig(name=name, resources=resources, max_count=most))
    gcs.report_cluster_config(ClusterConfig(node_group_configs=groups))


def published(gcs: Gcs) -> list[NodeType] | None:
    """None: this cluster's head says nothing of its node types."""
    config = gcs.cluster_config()
    if config is None:
        return None
    groups = config.node_group_configs
    return [NodeType(g.name, dict(g.resources), g.max_count if g.max_count >= 0 else 10**6) for g in groups]


def known(address: str) -> tuple[list[NodeType], bool]:
    """(what the cluster whose GCS is at `address` has or can have, whether its head published node types).

    Nodes that are up and of no such type count too. A cluster that an autoscaler leads is given PUBLISHED_S for it.
    """
    from ray.autoscaler.v2.sdk import get_cluster_status

    gcs, give_up = Gcs(address), time.monotonic() + PUBLISHED_S
    while True:
        types, status = published(gcs), get_cluster_status(address)
        up = [*status.active_nodes, *status.idle_nodes]
        led = any(NODE_TYPE in node.labels for node in up)
        if types is not None or not led or address in silent:
            break
        if time.monotonic() > give_up:
            silent.add(address)
        time.sleep(0.5)
    found, others = {t.name: t for t in types or [] if t.most}, []
    for node in up:
        has, name = node.total_resources(), node.labels.get(NODE_TYPE)
        if name in found:  # what Ray found on the machine, where the configuration doesn't say
            found[name] = replace(found[name], resources=has | found[name].resources)
        else:
            others.append(NodeType(name or node.ip_address, has, 1))
    return [*found.values(), *others], types is not None


def address() -> str | None:
    """host:port of the GCS of the cluster that this process has joined, or will by RAY_ADDRESS; None where nothing answers there."""
    import ray

    if ray.is_initialized():
        return ray.get_runtime_context().gcs_address

    found = os.environ["RAY_ADDRESS"]
    try:
        if found == "auto":  # the Ray that `ray start` started here last, as ray.init does
            folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
            found = (Path(folder) / "ray/ray_current_cluster").read_text().strip()
        host, port = found.rsplit(":", 1)
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError):
        return None
    return found


def most(resource: str) -> float:
    """How much of it ("GPU") the cluster that this process has joined, or will by RAY_ADDRESS, has or can have."""
    return sum(t.most * t.resources.get(resource, 0) for t in known(address())[0])
