"""The head of a Ray cluster (its Global Control Service) over gRPC, for processes that are no driver of it: the autoscaler's, our
commands, the threads of a job.

Ray has no documented client for its key-value store, nor for its nodes and jobs without a dashboard. These are the services of
its .proto files (gcs_service.proto, autoscaler.proto), by the stubs that the package comes with.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 30.0
"""Of one call; one that waits for a head that starts again included."""
NAMESPACE = b"shoestring"
"""Of our own entries."""
NODE_TYPE = "ray.io/node-group"
"""The label by which an autoscaler tells a node's type."""


class GcsError(RuntimeError):
    """The head didn't answer, or refused."""


@dataclass(frozen=True)
class RayJob:
    id: str
    entrypoint: str
    began: float
    """Unix time."""
    ended: float | None
    """Unix time; None: it runs."""


class Gcs:
    """address: host:port. Connects at the first call, and again after a break. All calls raise GcsError."""

    def __init__(self, address: str, timeout_s: float = TIMEOUT_S):
        import grpc

        self.address, self.timeout_s = address, timeout_s
        self._channel = grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)])

    def get(self, key: str, namespace: bytes = NAMESPACE) -> bytes | None:
        """An entry of the key-value store; None: there is none."""
        from ray.core.generated.gcs_service_pb2 import InternalKVGetRequest
        from ray.core.generated.gcs_service_pb2_grpc import InternalKVGcsServiceStub

        request = InternalKVGetRequest(key=key.encode(), namespace=namespace)
        return self._call(InternalKVGcsServiceStub(self._channel).InternalKVGet, request).value or None

    def put(self, key: str, value: bytes) -> None:
        """Writes an entry of ours, over what it held."""
        from ray.core.generated.gcs_service_pb2 import InternalKVPutRequest
        from ray.core.generated.gcs_service_pb2_grpc import InternalKVGcsServiceStub

        request = InternalKVPutRequest(key=key.encode(), value=value, overwrite=True, namespace=NAMESPACE)
        self._call(InternalKVGcsServiceStub(self._channel).InternalKVPut, request)

    def jobs(self) -> list[RayJob]:
        """Every job, without those that Ray itself runs (of its dashboard)."""
        from ray.core.generated.gcs_service_pb2 import GetAllJobInfoRequest
        from ray.core.generated.gcs_service_pb2_grpc import JobInfoGcsServiceStub

        request = GetAllJobInfoRequest(skip_submission_job_info_field=True, skip_is_running_tasks_field=True)
        rows = self._call(JobInfoGcsServiceStub(self._channel).GetAllJobInfo, request).job_info_list
        return [
            RayJob(
                row.job_id.hex(), row.entrypoint, row.start_time / 1000, row.end_time / 1000 if row.is_dead else None
            )
            for row in rows
            if not row.config.ray_namespace.startswith("_ray_internal")
        ]

    def node_states(self) -> list:
        """A NodeState (autoscaler.proto) of every node that is not dead."""
        from ray.core.generated.autoscaler_pb2 import GetClusterResourceStateRequest, NodeStatus
        from ray.core.generated.autoscaler_pb2_grpc import AutoscalerStateServiceStub

        call = AutoscalerStateServiceStub(self._channel).GetClusterResourceState
        states = self._call(call, GetClusterResourceStateRequest()).cluster_resource_state.node_states
        return [n for n in states if n.status != NodeStatus.DEAD]

    def report_cluster_config(self, config) -> None:
        """config: a ClusterConfig (autoscaler.proto)."""
        from ray.core.generated.autoscaler_pb2 import ReportClusterConfigRequest
        from ray.core.generated.autoscaler_pb2_grpc import AutoscalerStateServiceStub

        call = AutoscalerStateServiceStub(self._channel).ReportClusterConfig
        self._call(call, ReportClusterConfigRequest(cluster_config=config))

    def cluster_config(self):
        """The ClusterConfig that was reported, None where none was."""
        from ray.core.generated.autoscaler_pb2 import ClusterConfig

        found = self.get("__autoscaler_cluster_config", b"__autoscaler")
        return ClusterConfig.FromString(found) if found else None

    def declare_dead(self, nodes: Iterable[bytes], why: str) -> None:
        """nodes: ids of nodes that are gone. As a raylet reports its own end; DrainNode would call the raylet."""
        from ray.core.generated.common_pb2 import NodeDeathInfo
        from ray.core.generated.gcs_service_pb2 import UnregisterNodeRequest
        from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

        death = NodeDeathInfo(reason=NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED, reason_message=why)
        for node in nodes:
            request = UnregisterNodeRequest(node_id=node, node_death_info=death)
            self._call(NodeInfoGcsServiceStub(self._channel).UnregisterNode, request)

    def _call(self, method, request):
        import grpc

        try:
            return method(request, timeout=self.timeout_s, wait_for_ready=True, metadata=_token())
        except grpc.RpcError as e:
            raise GcsError(f"Ray's head at {self.address}: {e.code().name.lower()}: {e.details()}") from None


def _token() -> tuple[tuple[str, str], ...]:
    """The metadata of a call where the cluster has a token (https://docs.ray.io/en/latest/ray-security/token-auth.html)."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return ()
    token = os.environ.get("RAY_AUTH_TOKEN")
    if not token:
        file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
        token = file.read_text().strip() if file.exists() else ""
    return (("authorization", f"Bearer {token}"),) if token else ()
