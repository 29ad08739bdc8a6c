"""Telling Ray at once that nodes are gone, where it would find out by waiting."""

from __future__ import annotations

from lib.gcs import Gcs


def tell(address: str, instances: set[str], seconds: float = 5) -> int:
    """Declares the Ray nodes on these rentals dead, so that what ran there is tried elsewhere. Returns how many there were.

    address: of the GCS, host:port. instances: node ids of the provider. Raises GcsError, a RuntimeError, where the GCS can't be
    reached.
    """
    gcs = Gcs(address, seconds)
    gone = [n.node_id for n in gcs.node_states() if n.instance_id in instances]
    gcs.declare_dead(gone, "its rental was lost")
    return len(gone)
