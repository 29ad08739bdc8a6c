"""Immediate notices to Ray: a node that went dark is dead (cluster/node/lost.py); why nothing can be rented (cluster/node/failures.py)."""

import os
import subprocess
import sys

import pytest

from tests.conftest import PATIENCE, REPO

DARK = """
import os, signal, sys, time
from lib.runtime.gcs import Gcs
from ray.cluster_utils import Cluster
from cluster.node import lost
from cluster.node.failures import Failures
from cluster.money.ledger import Ledger
from lib.runtime import cluster_signals as notice

never = {"health_check_initial_delay_ms": 3_600_000}  # so that only what it is told can end the node
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": never})
dark = cluster.add_node(num_cpus=1, env_vars={"RAY_CLOUD_INSTANCE_ID": "vast-1"})
[raylet] = dark.all_processes["raylet"]

def alive():
    return Gcs(cluster.address).node_states()

try:
    os.kill(raylet.process.pid, signal.SIGSTOP)
    give_up = time.monotonic() + float(sys.argv[1])
    assert lost.tell(cluster.address, {"vast-2"}) == 0
    assert lost.tell(cluster.address, {"vast-1", "vast-2"}) == 1
    while len(alive()) > 1:
        assert time.monotonic() < give_up
    assert lost.tell(cluster.address, {"vast-1"}) == 0
    gcs, failures = Gcs(cluster.address), Failures(Ledger("c"), cluster.address)
    assert notice.reason(gcs) is None
    failures.cannot("gpu", "none is offered")
    failures.cannot("big", "the key is refused")
    assert notice.reason(gcs) == "gpu: none is offered\\nbig: the key is refused"
    failures.can("gpu")
    assert notice.reason(gcs) == "big: the key is refused"
    at, notice.OLD_S = notice.OLD_S, 0.0  # nobody has said it for so long
    assert notice.reason(gcs) is None
    notice.OLD_S = at
    failures.can("big")
    assert notice.reason(gcs) is None
finally:
    os.kill(raylet.process.pid, signal.SIGCONT)
    cluster.shutdown()
"""


@pytest.mark.slow
def test_a_dark_node_is_dead_as_soon_as_ray_is_told_and_jobs_know_why_nothing_is_rented(tmp_path):
    """In its own process, with the setting of `python -m cluster head`: Ray reads it once, and other tests' Rays require a token."""
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"RAY_AUTH_MODE": "disabled"}
    env["SHOESTRING_STATE"] = str(tmp_path)
    command = [sys.executable, "-c", DARK, str(PATIENCE)]
    ended = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
