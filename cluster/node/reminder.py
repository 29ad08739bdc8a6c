"""Warns after a failed `ray up` that the head is still rented: Ray keeps it for the next attempt, and its market bills it."""

from __future__ import annotations

import atexit
import sys

import click
from ray.autoscaler import tags as ray

from cluster.node.nodes import Nodes


class Reminder:
    """Watches the heads that this process sets up."""

    def __init__(self, nodes: Nodes):
        self.nodes = nodes
        self._heads: set[str] = set()

    def watch(self, node_id: str) -> None:
        """Prints the warning when this process ends, whether by an error, Ctrl-C or a bug in Ray, unless the head is up by then."""
        if node_id not in self._heads:
            self._heads.add(node_id)
            atexit.register(self.say, node_id)

    def say(self, node_id: str) -> None:
        node = self.nodes.get(node_id)
        if node is None or node.tags.get(ray.TAG_RAY_NODE_STATUS) == ray.STATUS_UP_TO_DATE:
            return
        cluster, usd = self.nodes.cluster, (node.rental.usd_per_hour or 0.0) + node.rental.disk_usd_per_hour
        path = next((word for word in sys.argv[1:] if word.endswith((".yaml", ".yml"))), "CLUSTER.yaml")
        click.echo(
            f"\n{cluster} has no working head, but {node_id} is still rented for it and costs ${usd:.3f} an hour.\n"
            f"  ray down {path}    ends it and all other rentals of {cluster}\n"
            f"  ray up {path}      tries again on it, keeping what is installed",
            err=True,
        )
