"""Messages between a cluster and its training jobs. The cluster sends "save and stop" (the budget is spent), "save" (a node is
going away) and why nothing can be rented; each job sends its progress.

Messages are entries of Ray's internal KV, so neither side needs an address or an extra process. All ranks have to save at the
same step: about every EVERY_S seconds they synchronise, at a step agreed on the time before, and follow rank 0's decision.
Between these steps the cost is one integer comparison per step. Jobs on a local Ray don't use this module.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import asdict, dataclass

from lib.run import Run
from lib.runtime.gcs import Gcs, GcsError
from lib.runtime.logs import say

STOP = "stop"
JOB = "job/"
RENT = "cannot_rent"
OLD_S = 120.0
"""Age in seconds at which a published reason for not renting expires. It is published again while it holds."""
EVERY_S = 2.0
"""Seconds between synchronisations of the ranks, approximately."""
MOST_STEPS = 1000
"""Most steps between two synchronisations, however fast steps are."""


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
        while not self.over.wait(EVERY_S / 2):
            try:
                stored = self.gcs.get(STOP)
            except GcsError as e:  # a busy head may answer the next time
                say(f"notice: the head didn't answer, asking again: {e}")
                continue
            stop = Stop(**json.loads(stored)) if stored else None
            self.stop = stop if stop and stop.deadline > time.time() else None


def callback(run: Run, stage: str):
    """Returns a TrainerCallback for every rank, whose `stopped` is the reason why training was stopped, or None. Add it after
    the callback that seals checkpoints."""
    import ray.train
    import torch.distributed as dist
    from transformers import TrainerCallback

    many = dist.is_initialized() and dist.get_world_size() > 1
    rank = dist.get_rank() if many else 0

    def from_rank_0(value):
        box = [value]
        if many:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    class Notice(TrainerCallback):
        stopped: str | None = None

        def on_train_begin(self, args, state, control, **kwargs):
            self.met = self.began = (time.time(), state.global_step)
            self.next = state.global_step + 1
            nodes = [os.environ.get("RAY_CLOUD_INSTANCE_ID")]
            if many:
                nodes = [None] * dist.get_world_size()
                dist.all_gather_object(nodes, os.environ.get("RAY_CLOUD_INSTANCE_ID"))
            self.nodes = tuple(sorted({n for n in nodes if n}))
            self.saved, self.preempted = None, None
            if rank == 0:
                self.gcs = Gcs(ray.get_runtime_context().gcs_address)
                self.listener = Listener(self.gcs)
                self.listener.start()
                self.report(state)

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step < self.next:
                return
            going = ray.train.get_preemption_info()  # also a barrier for all ranks
            self.next, why, self.stopped = from_rank_0(self.decide(state, going) if rank == 0 else None)
            if why and rank == 0:
                say(f"Saving at step {state.global_step}: {why}")
            control.should_save = control.should_save or bool(why)
            control.should_training_stop = control.should_training_stop or bool(self.stopped)

        def decide(self, state, going) -> tuple[int, str | None, str | None]:
            """Returns (step of the next synchronisation, why to save now or None, why to stop now or None)."""
            (then, last), now = self.met, time.time()
            self.met = (now, state.global_step)
            steps = int(EVERY_S * (state.global_step - last) / max(now - then, 1e-6))
            following = state.global_step + min(max(steps, 1), MOST_STEPS)
            stop = self.listener.stop
            if stop:
                return following, stop.text, f"{stop.text} {self.to_finish(state, stop)}"
            if going and going != self.preempted:
                self.preempted = going
                ranks = ", ".join(map(str, going.preempted_ranks))
                return following, f"ranks {ranks} are on nodes that are going away.", None
            return following, None, None

        def to_finish(self, state, stop: Stop) -> str:
            left, done = state.max_steps - state.global_step, state.global_step - self.began[1]
            seconds = (time.time() - self.began[0]) / done
            usd = left * seconds * stop.usd_per_hour / 3600
            return (
                f"Saved at step {state.global_step} of {state.max_steps}; the other {left}, at {seconds:.2g} s and "
                f"${stop.usd_per_hour:.3g} an hour, cost about ${usd:.2f} more."
            )

        def on_save(self, args, state, control, **kwargs):
            self.saved = time.time()
            if rank == 0:
                self.report(state)

        def on_train_end(self, args, state, control, **kwargs):
            if rank == 0:
                self.listener.over.set()
                self.report(state)

        def report(self, state) -> None:
            job = JobState(run.path, stage, self.nodes, self.began[0], state.global_step, state.max_steps, self.saved)
            try:
                self.gcs.put(JOB + ray.get_runtime_context().get_job_id(), json.dumps(asdict(job)).encode())
            except GcsError as e:  # training goes on; the next save reports again
                say(f"notice: the job's progress could not be reported to the head: {e}")

    return Notice()
