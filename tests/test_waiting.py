"""lib/waiting.py: what a job says of the nodes that it waits for."""

import pytest
from ray.autoscaler.v2.schema import (
    ClusterStatus,
    LaunchRequest,
    NodeInfo,
    NodeUsage,
    PlacementGroupResourceDemand,
    RayTaskActorDemand,
    ResourceDemandSummary,
    ResourceRequestByCount,
    ResourceUsage,
)

from lib.waiting import state, worded

EACH = {"CPU": 8, "GPU": 1}


def node(kind: str, **resources: float) -> NodeInfo:
    return NodeInfo(
        "", kind, "i", "10.0.0.1", resource_usage=NodeUsage([ResourceUsage(k, v) for k, v in resources.items()], 0)
    )


def status(demand: dict | None = EACH, launches: int = 0, pending: int = 0, up: int = 0) -> ClusterStatus:
    wanted = [PlacementGroupResourceDemand([ResourceRequestByCount(demand, 2)], "")] if demand else []
    launch = LaunchRequest("", "gpu", launches, LaunchRequest.Status.PENDING, 0)
    return ClusterStatus(
        active_nodes=[node("head", CPU=0), *[node("gpu", CPU=8, GPU=1)] * up],
        pending_launches=[launch] if launches else [],
        pending_nodes=[node("gpu")] * pending,
        resource_demands=ResourceDemandSummary(placement_group_demand=wanted),
    )


@pytest.mark.parametrize(
    ("now", "why", "long", "says"),
    [
        (status(launches=2), None, False, "2 × gpu being rented"),
        (status(launches=1, pending=1), None, False, "1 × gpu rented and booting; 1 × gpu being rented"),
        (status(pending=1, up=1), None, True, "1 × gpu up; 1 × gpu rented and booting"),
        (status(launches=2), "gpu: $10 are spent", False, "nothing can be rented: gpu: $10 are spent"),
        (status(pending=1), "gpu: a\nbox: b", True, "1 × gpu rented and booting; no more can be rented:\n  gpu: a\n  box: b"),
        (status(), None, False, None),  # the autoscaler hasn't looked yet
        (status(), None, True, "no node is free, and none is being rented. `ray status` shows what the nodes are used for"),
        (status(demand=None, launches=1), "too dear", True, None),  # nobody waits
        (status(demand={"CPU": 1}, launches=1), None, True, None),  # another job does
    ],
)  # fmt: skip
def test_what_is_said(now, why, long, says):
    assert state(now, EACH, why, long) == says


def test_an_actor_that_waits_counts_as_well():
    demands = ResourceDemandSummary(ray_task_actor_demand=[RayTaskActorDemand([ResourceRequestByCount(EACH, 1)])])
    assert state(ClusterStatus(resource_demands=demands), EACH, "too dear", False) == "nothing can be rented: too dear"


def test_how_workers_are_worded():
    assert worded(1, {"CPU": 1}) == "1 worker (1 CPU core)"
    assert worded((2, 4), {"CPU": 8, "GPU": 1}) == "2 to 4 workers (1 GPU and 8 CPU cores each)"
