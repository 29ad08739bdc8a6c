"""The node types that a Ray cluster has or can have, from which a job plans before any node is up.

A cluster's head publishes its node types in Ray's ClusterConfig in the GCS (autoscaler.proto). Ray Train reads it too, and refuses
workers that would fit on none of these nodes.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path

from lib.runtime.gcs import NODE_TYPE, Gcs

PUBLISHED_S = 30.0
"""Seconds within which a starting head publishes its node types."""

silent: set[str] = set()
"""Addresses of clusters whose heads published nothing in that time."""


@dataclass(frozen=True)
class NodeType:
    name: str
    resources: dict[str, float]
    """Resources of each node: {"CPU": 8, "GPU": 1}."""
    most: int
    """Most nodes of this type at one time."""

    def room(self, each: dict[str, float]) -> int:
        """Returns how many workers with resources `each` fit on one node."""
        return int(min(self.resources.get(what, 0) // amount for what, amount in each.items()))

    def __str__(self) -> str:
        shown = ", ".join(f"{what}: {self.resources.get(what, 0):g}" for what in ("CPU", "GPU"))
        return f"{self.name} {{{shown}}}"


def publish(gcs: Gcs, config: dict) -> None:
    """Publishes the node types of a cluster's configuration, with Ray's defaults filled in, for every job."""
    from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

    groups, at_once = [], config.get("max_workers", 0)
    for name, node in config["available_node_types"].items():
        most = min(node.get("max_workers", at_once), at_once) + (name == config["head_node_type"])
        resources = {k: int(v) for k, v in (node.get("resources") or {}).items()}
        groups.append(NodeGroupConfig(name=name, resources=resources, max_count=most))
    gcs.report_cluster_config(ClusterConfig(node_group_configs=groups))


def published(gcs: Gcs) -> list[NodeType] | None:
    """Returns the published node types; None if this cluster's head published none."""
    config = gcs.cluster_config()
    if config is None:
        return None
    groups = config.node_group_configs
    return [NodeType(g.name, dict(g.resources), g.max_count if g.max_count >= 0 else 10**6) for g in groups]


def known(address: str) -> tuple[list[NodeType], bool]:
    """Returns (node types that the cluster with its GCS at `address` has or can have, whether its head published them).

    Running nodes of other types count too. Waits up to PUBLISHED_S seconds for the head of a cluster with an autoscaler.
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
        if name in found:  # resources that the configuration leaves out, as Ray detected them
            found[name] = replace(found[name], resources=has | found[name].resources)
        else:
            others.append(NodeType(name or node.ip_address, has, 1))
    return [*found.values(), *others], types is not None


def address() -> str | None:
    """Returns host:port of the GCS of the cluster that this process has joined, or will join by RAY_ADDRESS; None if nothing
    answers there."""
    import ray

    if ray.is_initialized():
        return ray.get_runtime_context().gcs_address

    found = os.environ["RAY_ADDRESS"]
    try:
        if found == "auto":  # the Ray last started here by `ray start`, as for ray.init
            folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
            found = (Path(folder) / "ray/ray_current_cluster").read_text().strip()
        host, port = found.rsplit(":", 1)
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError):
        return None
    return found


def most(resource: str) -> float:
    """Returns how much of `resource` ("GPU") the cluster that this process has joined, or will join by RAY_ADDRESS, can have."""
    return sum(t.most * t.resources.get(resource, 0) for t in known(address())[0])
