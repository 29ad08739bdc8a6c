"""A gRPC client of a Ray cluster's head (its Global Control Service), for processes that are not Ray drivers: the autoscaler, this
project's commands, threads of a job.

Ray documents no client for its key-value store, nor, without a dashboard, for its nodes and jobs. This one calls the services of
Ray's .proto files (gcs_service.proto, autoscaler.proto) through the stubs in the ray package.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 30.0
"""Timeout of one call, including the wait for a head that is restarting."""
NAMESPACE = b"shoestring"
"""Namespace of this project's entries in the key-value store."""
NODE_TYPE = "ray.io/node-group"
"""The label by which an autoscaler recognises a node's type."""


class GcsError(RuntimeError):
    """The head didn't answer, or refused the call."""


@dataclass(frozen=True)
class RayJob:
    id: str
    entrypoint: str
    began: float
    """Unix time."""
    ended: float | None
    """Unix time. None: the job is still running."""


class Gcs:
    """A client of the head at `address` (host:port). Connects at the first call and reconnects after a disconnection. Every call may
    raise GcsError."""

    def __init__(self, address: str, timeout_s: float = TIMEOUT_S):
        import grpc

        self.address, self.timeout_s = address, timeout_s
        self._channel = grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)])

    def get(self, key: str, namespace: bytes = NAMESPACE) -> bytes | None:
        """Returns an entry of the key-value store, or None if it doesn't exist."""
        from ray.core.generated.gcs_service_pb2 import InternalKVGetRequest
        from ray.core.generated.gcs_service_pb2_grpc import InternalKVGcsServiceStub

        request = InternalKVGetRequest(key=key.encode(), namespace=namespace)
        return self._call(InternalKVGcsServiceStub(self._channel).InternalKVGet, request).value or None

    def put(self, key: str, value: bytes) -> None:
        """Writes an entry in this project's namespace, replacing an existing one."""
        from ray.core.generated.gcs_service_pb2 import InternalKVPutRequest
        from ray.core.generated.gcs_service_pb2_grpc import InternalKVGcsServiceStub

        request = InternalKVPutRequest(key=key.encode(), value=value, overwrite=True, namespace=NAMESPACE)
        self._call(InternalKVGcsServiceStub(self._channel).InternalKVPut, request)

    def jobs(self) -> list[RayJob]:
        """Returns all jobs except Ray's internal ones (those of its dashboard)."""
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
        """Returns the NodeState (autoscaler.proto) of every node that is not dead."""
        from ray.core.generated.autoscaler_pb2 import GetClusterResourceStateRequest, NodeStatus
        from ray.core.generated.autoscaler_pb2_grpc import AutoscalerStateServiceStub

        call = AutoscalerStateServiceStub(self._channel).GetClusterResourceState
        states = self._call(call, GetClusterResourceStateRequest()).cluster_resource_state.node_states
        return [n for n in states if n.status != NodeStatus.DEAD]

    def report_cluster_config(self, config) -> None:
        """Publishes the cluster's configuration. config: a ClusterConfig (autoscaler.proto)."""
        from ray.core.generated.autoscaler_pb2 import ReportClusterConfigRequest
        from ray.core.generated.autoscaler_pb2_grpc import AutoscalerStateServiceStub

        call = AutoscalerStateServiceStub(self._channel).ReportClusterConfig
        self._call(call, ReportClusterConfigRequest(cluster_config=config))

    def cluster_config(self):
        """Returns the published ClusterConfig, or None."""
        from ray.core.generated.autoscaler_pb2 import ClusterConfig

        found = self.get("__autoscaler_cluster_config", b"__autoscaler")
        return ClusterConfig.FromString(found) if found else None

    def declare_dead(self, nodes: Iterable[bytes], why: str) -> None:
        """Marks nodes that are gone as dead. nodes: their ids.

        Sends the message that a raylet sends when it shuts down. DrainNode can't be used, because it calls the raylet.
        """
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
    """Returns a call's metadata with the cluster's token, or () without one
    (https://docs.ray.io/en/latest/ray-security/token-auth.html)."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return ()
    token = os.environ.get("RAY_AUTH_TOKEN")
    if not token:
        file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
        token = file.read_text().strip() if file.exists() else ""
    return (("authorization", f"Bearer {token}"),) if token else ()
