"""What `ray up` leaves when it fails: Ray keeps the head for the next try, and its market bills it."""

from __future__ import annotations

import sys

import click
from ray.autoscaler import tags as ray

from cluster.market import Rental


def still_bills(rental: Rental, tags: dict[str, str], cluster: str) -> str | None:
    """What to say of a head when the process that set it up ends; None: it leads."""
    if tags.get(ray.TAG_RAY_NODE_STATUS) == ray.STATUS_UP_TO_DATE:
        return None
    usd = (rental.usd_per_hour or 0.0) + rental.disk_usd_per_hour
    path = next((word for word in sys.argv[1:] if word.endswith((".yaml", ".yml"))), "CLUSTER.yaml")
    return (
        f"\n{cluster} has no head that leads, but {rental.market}-{rental.id} is still rented for it and costs ${usd:.3f} an hour.\n"
        f"  ray down {path}    ends it, and all else that {cluster} rents\n"
        f"  ray up {path}      tries again with it; what is installed on it is kept"
    )


def say(text: str | None) -> None:
    if text:
        click.echo(text, err=True)
