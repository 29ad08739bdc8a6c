"""Plans and builds the stages of jobs/ in the test's own process."""

from __future__ import annotations

from dataclasses import replace

from cluster.estimate.workload import stage
from lib import data
from lib.stage import plan, training_cli


def planned(name: str, argv: list[str]) -> plan.Plan:
    """Returns the plan that jobs/<name>.py makes before it starts anything. Raises UsageError."""
    found = stage(name)
    return plan.make(training_cli.parse(found, argv), found)


def built(job, args):
    """Returns the trainer of a worker that has all rows. args: as made by lib/stage/training_arguments.py."""
    found = stage(job.stage)
    return found.build(
        replace(job, makes=found.kind(job.train, job.model.adapter)), args, data.load(job.data, found.rows)
    )
