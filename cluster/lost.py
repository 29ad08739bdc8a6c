"""Telling Ray at once that nodes are gone, where it would find out by waiting."""

from __future__ import annotations


def tell(address: str, instances: set[str], seconds: float = 5) -> int:
    """Declares the Ray nodes on these rentals dead, so that what ran there is tried elsewhere. Returns how many there were.

    address: of the GCS, host:port. instances: node ids of the provider. Raises RuntimeError where the GCS can't
    be reached. This is what a raylet says of itself when it ends; GcsClient.drain_nodes would ask the raylet, which is gone.
    """
    import grpc
    from ray._raylet import GcsClient
    from ray.autoscaler.v2.sdk import get_cluster_resource_state
    from ray.core.generated.autoscaler_pb2 import NodeStatus
    from ray.core.generated.common_pb2 import NodeDeathInfo
    from ray.core.generated.gcs_service_pb2 import UnregisterNodeRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    state = get_cluster_resource_state(GcsClient(address=address))
    gone = [n.node_id for n in state.node_states if n.instance_id in instances and n.status != NodeStatus.DEAD]
    why = NodeDeathInfo(reason=NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED, reason_message="its rental was lost")
    with grpc.insecure_channel(address) as channel:
        for node in gone:
            request = UnregisterNodeRequest(node_id=node, node_death_info=why)
            try:
                NodeInfoGcsServiceStub(channel).UnregisterNode(request, timeout=seconds)
            except grpc.RpcError as e:
                raise RuntimeError(f"{address} did not take it: {e}") from None
    return len(gone)
