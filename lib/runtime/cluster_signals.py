"""Messages between a cluster and its training jobs. The cluster sends "save and stop" (the budget is spent), "save" (a node is
going away) and why nothing can be rented; each job sends its progress.

Messages are entries of Ray's internal KV, so neither side needs an address or an extra process. lib/stage/cluster_callback.py acts
on them in a training job. Jobs on a local Ray don't use this module.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass

from lib.runtime.gcs import Gcs, GcsError
from lib.runtime.logs import say

STOP = "stop"
JOB = "job/"
RENT = "cannot_rent"
OLD_S = 120.0
"""Age in seconds at which a published reason for not renting expires. It is published again while it holds."""
POLL_S = 1.0
"""Seconds between a job's looks for a stop request."""


@dataclass(frozen=True)
class Stop:
    """The request to save and stop."""

    text: str
    """Why, as a sentence."""
    deadline: float
    """Unix time at which the nodes are removed. A request whose deadline has passed is stale and is ignored."""
    usd_per_hour: float
    """Cost of the cluster, from which the cost of finishing the job is estimated."""


@dataclass(frozen=True)
class JobState:
    """Progress of a training job. Times are Unix times."""

    run: str
    stage: str
    nodes: tuple[str, ...]
    """Ids of the rented instances (RAY_CLOUD_INSTANCE_ID) that its workers are on."""
    began: float
    step: int
    max_steps: int
    saved: float | None = None
    """When its last checkpoint was complete."""


# -- the cluster's side, over its GCS ----------------------------------------------------------------------------------


def tell(gcs: Gcs, stop: Stop) -> None:
    """Asks every training job of the cluster to stop, including those that start before the deadline."""
    gcs.put(STOP, json.dumps(asdict(stop)).encode())


def cannot_rent(gcs: Gcs, text: str | None) -> None:
    """Publishes why nothing can be rented now, for the jobs waiting for nodes. None: renting works."""
    message = json.dumps({"text": text, "at": time.time()}).encode()
    gcs.put(RENT, message)


def reason(gcs: Gcs) -> str | None:
    """Returns why nothing can be rented now, as lines "node type: why". None: no current reason is published."""
    stored = gcs.get(RENT)
    message = json.loads(stored) if stored else {"text": None}
    return message["text"] if message["text"] and message["at"] > time.time() - OLD_S else None


def jobs(gcs: Gcs) -> list[dict]:
    """Returns every job of this Ray, oldest first: id, entrypoint, began, ended (None: running), state (JobState or None)."""
    found = []
    for job in sorted(gcs.jobs(), key=lambda job: job.began):
        stored = gcs.get(JOB + job.id)
        found.append(asdict(job) | {"state": JobState(**json.loads(stored)) if stored else None})
    return found


def busy(gcs: Gcs) -> bool:
    """Whether a training job is still running, and so may still be saving."""
    return any(job["state"] and job["ended"] is None for job in jobs(gcs))


# -- the job's side ----------------------------------------------------------------------------------------------------


class Listener(threading.Thread):
    """Polls for a stop request, in a thread beside the training of rank 0."""

    def __init__(self, gcs: Gcs):
        super().__init__(daemon=True, name="notice")
        self.gcs = gcs
        self.stop: Stop | None = None
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(POLL_S):
            try:
                stored = self.gcs.get(STOP)
            except GcsError as e:  # a busy head may answer the next time
                say(f"notice: the head didn't answer, asking again: {e}")
                continue
            stop = Stop(**json.loads(stored)) if stored else None
            self.stop = stop if stop and stop.deadline > time.time() else None


def report(gcs: Gcs, job_id: str, state: JobState) -> None:
    """Sends a job's progress. A head that doesn't answer is reported and ignored: the next save reports again."""
    try:
        gcs.put(JOB + job_id, json.dumps(asdict(state)).encode())
    except GcsError as e:
        say(f"notice: the job's progress could not be reported to the head: {e}")
