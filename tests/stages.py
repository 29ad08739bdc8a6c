"""Stages of jobs/, planned and built in a test's own process."""

from __future__ import annotations

from dataclasses import replace

from cluster.work import stage
from lib import cli, data
from lib.stage import plan


def planned(name: str, argv: list[str]) -> plan.Plan:
    """What jobs/<name>.py finds out before it starts anything. Raises UsageError."""
    found = stage(name)
    return plan.make(cli.parse(found, argv), found)


def built(job, args):
    """The trainer of a worker that has all rows. args: as lib/training_arguments.py makes them."""
    found = stage(job.stage)
    return found.build(replace(job, makes=found.makes), args, data.load(job.data, found.rows))
