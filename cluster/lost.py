"""Telling Ray at once that nodes are gone, where it would find out by waiting."""

from __future__ import annotations


def tell(address: str, instances: set[str], seconds: int = 5) -> int:
    """Declares the Ray nodes on these rentals dead, so that what ran there is tried elsewhere. Returns how many there were.

    address: of the GCS, host:port. instances: node ids of the provider. Raises RuntimeError where the GCS can't be reached.
    """
    from ray._raylet import GcsClient
    from ray.autoscaler.v2.sdk import get_cluster_resource_state
    from ray.core.generated.autoscaler_pb2 import NodeStatus

    gcs = GcsClient(address=address)
    state = get_cluster_resource_state(gcs)
    ids = [n.node_id for n in state.node_states if n.instance_id in instances and n.status != NodeStatus.DEAD]
    return len(gcs.drain_nodes(ids, timeout=seconds)) if ids else 0
