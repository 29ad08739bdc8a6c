"""lib/runtime/waiting.py: a job's message about the nodes for which it waits."""

import pytest
from ray.autoscaler.v2.schema import (
    ClusterConstraintDemand,
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

from lib.runtime.waiting import state, worded

EACH = {"CPU": 8, "GPU": 1}


def node(kind: str, id: str = "", used: float = 0, **resources: float) -> NodeInfo:
    """used: the share of its resources that is in use."""
    usage = [ResourceUsage(k, v, v * used) for k, v in resources.items()]
    return NodeInfo("", kind, id, "10.0.0.1", resource_usage=NodeUsage(usage, 0))


def status(
    demand: dict | None = EACH, launches: int = 0, pending: int = 0, up: int = 0, used: float = 0
) -> ClusterStatus:
    """Two workers wait for a node each. The first node that is up is also among the pending ones, since it has just joined."""
    wanted = [PlacementGroupResourceDemand([ResourceRequestByCount(demand, 2)], "")] if demand else []
    launch = LaunchRequest("", "gpu", launches, LaunchRequest.Status.PENDING, 0)
    joined = [node("gpu", f"vast-{i}", used, CPU=8, GPU=1) for i in range(up)]
    return ClusterStatus(
        active_nodes=[node("head", "here", CPU=0), *joined],
        pending_launches=[launch] if launches else [],
        pending_nodes=[*joined[:1], *[node("gpu", f"vast-{9 + i}") for i in range(pending)]],
        resource_demands=ResourceDemandSummary(
            placement_group_demand=wanted,
            cluster_constraint_demand=[ClusterConstraintDemand([ResourceRequestByCount(EACH, 2)])],
        ),
    )


@pytest.mark.parametrize(
    ("now", "why", "long", "says"),
    [
        (status(launches=2), None, False, "2 × gpu being rented"),
        (status(launches=1, pending=1), None, False, "1 × gpu rented and booting; 1 × gpu being rented"),
        (status(pending=1, up=1), None, True, "1 × gpu up; 1 × gpu rented and booting"),
        (status(launches=2), "gpu: $10 are spent", False, "nothing can be rented: gpu: $10 are spent"),
        (status(pending=1), "gpu: a\nbox: b", True, "1 × gpu rented and booting; no more can be rented:\n  gpu: a\n  box: b"),
        (status(), None, False, None),  # the autoscaler hasn't run yet
        (status(), None, True, "no node is free, and none is being rented. `ray status` shows what the nodes are used for"),
        (status(up=2), "gpu: an old reason", True, None),  # both nodes are up: the workers are being started
        (status(pending=2), "gpu: an old reason", True, "2 × gpu rented and booting"),
        (status(up=2, used=1), None, True, "no node is free, and none is being rented. `ray status` shows what the nodes are used for"),
        (status(up=2, used=1), "too dear", True, "2 × gpu up; no more can be rented: too dear"),  # the nodes work for another job
        (status(demand=None, up=2, used=1), "too dear", True, None),  # the workers are running
        (status(demand=None, up=1, launches=1), None, True, "1 × gpu up; 1 × gpu being rented"),  # a group that may shrink
    ],
)  # fmt: skip
def test_what_is_said(now, why, long, says):
    assert state(now, EACH, why, long) == says


def test_another_jobs_workers_do_not_count():
    other = RayTaskActorDemand([ResourceRequestByCount({"CPU": 1}, 3)])
    demands = ResourceDemandSummary(ray_task_actor_demand=[other])
    assert state(ClusterStatus(resource_demands=demands), EACH, "too dear", True) is None


def test_an_actor_that_waits_counts_as_well():
    demands = ResourceDemandSummary(ray_task_actor_demand=[RayTaskActorDemand([ResourceRequestByCount(EACH, 1)])])
    assert state(ClusterStatus(resource_demands=demands), EACH, "too dear", False) == "nothing can be rented: too dear"


def test_how_workers_are_worded():
    assert worded(1, {"CPU": 1}) == "1 worker (1 CPU core)"
    assert worded((2, 4), {"CPU": 8, "GPU": 1}) == "2 to 4 workers (1 GPU and 8 CPU cores each)"
