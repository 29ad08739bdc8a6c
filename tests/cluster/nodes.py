"""The rentals of node tests: a ladder over both markets, and a cluster that uses it."""

from __future__ import annotations

from ray.autoscaler import tags as ray

LADDER = [
    {"market": "vast", "gpus": ["RTX 4090"], "max_usd_per_hour": 0.5},
    {"market": "vast", "gpus": ["RTX 4090"], "spot": False, "max_usd_per_hour": 0.6},
    {"market": "runpod", "gpus": ["RTX 4090"], "spot": False, "max_usd_per_hour": 0.8},
]
ANY = [{"market": "vast", "max_usd_per_hour": 9.0}]
WORKER = {
    ray.TAG_RAY_NODE_KIND: ray.NODE_KIND_WORKER,
    ray.TAG_RAY_USER_NODE_TYPE: "gpu",
    ray.TAG_RAY_NODE_STATUS: ray.STATUS_UNINITIALIZED,
    ray.TAG_RAY_LAUNCH_REQUEST: "12345678-1234-1234-1234-123456789abc",
}


def cluster(**provider) -> dict:
    return {
        "cluster_name": "c1",
        "max_workers": 2,
        "head_node_type": "head",
        "provider": {
            "type": "external", "module": "cluster.provider.Provider", "markets": ["vast", "runpod"], "image": "i", **provider,
        },
        "available_node_types": {
            "head": {"resources": {}, "node_config": {"ladder": [LADDER[2]]}},
            "gpu": {"resources": {"GPU": 1}, "node_config": {"ladder": LADDER}},
        },
    }  # fmt: skip


def running(sim, provider) -> list[str]:
    """Waits until all rentals run and returns their node ids."""
    sim.wait(lambda s: s["rentals"] and all(r["state"] == "running" for r in s["rentals"]))
    return provider.non_terminated_nodes({})
