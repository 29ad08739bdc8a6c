"""Reports lost nodes to Ray at once, instead of leaving it to its health checks."""

from __future__ import annotations

from lib.runtime.gcs import Gcs


def tell(address: str, instances: set[str], seconds: float = 5) -> int:
    """Declares the Ray nodes on these rentals dead, so that their tasks are retried elsewhere. Returns how many there were.

    address: host:port of the GCS. instances: node ids of the provider. seconds: timeout. Raises GcsError, a RuntimeError, if the
    GCS can't be reached.
    """
    gcs = Gcs(address, seconds)
    gone = [n.node_id for n in gcs.node_states() if n.instance_id in instances]
    gcs.declare_dead(gone, "its rental was lost")
    return len(gone)
