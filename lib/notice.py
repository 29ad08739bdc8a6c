"""What a cluster tells its training jobs (save and stop, the money is out; save, a node goes away; why nothing can be rented), and
what they tell it.

All are entries of Ray's internal KV, so neither side needs an address or a process of its own. All ranks have to save at the
same step: every EVERY_S or so they meet at a step that they agreed on the last time, and take rank 0's word. In between, a step
costs the comparison of two integers. A job on a Ray of its own has none of this.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import asdict, dataclass

from lib.gcs import Gcs, GcsError
from lib.logs import say
from lib.run import Run

STOP = "stop"
JOB = "job/"
RENT = "cannot_rent"
OLD_S = 120.0
"""Why nothing can be rented is published again as long as it is so; what is older than this counts no more."""
EVERY_S = 2.0
MOST_STEPS = 1000
"""Between two meetings, however fast steps are."""


@dataclass(frozen=True)
class Stop:
    """Save and stop."""

    text: str
    """Why, as a sentence."""
    deadline: float
    """Unix time when the nodes go. A word whose deadline has passed is an old one, and means nothing any more."""
    usd_per_hour: float
    """What the cluster costs, to say what finishing would."""


@dataclass(frozen=True)
class JobState:
    """What a training job tells. Times are Unix times."""

    run: str
    stage: str
    nodes: tuple[str, ...]
    """Ids of the rentals (RAY_CLOUD_INSTANCE_ID) that its workers are on."""
    began: float
    step: int
    max_steps: int
    saved: float | None = None
    """When its last checkpoint was whole."""


# -- the cluster's side, over its GCS ----------------------------------------------------------------------------------


def tell(gcs: Gcs, stop: Stop) -> None:
    """Tells every training job of the cluster, also those that start before the deadline."""
    gcs.put(STOP, json.dumps(asdict(stop)).encode())


def cannot_rent(gcs: Gcs, text: str | None) -> None:
    """Why nothing can be rented now, for who waits for it. None: it can."""
    told = json.dumps({"text": text, "at": time.time()}).encode()
    gcs.put(RENT, told)


def reason(gcs: Gcs) -> str | None:
    """Why nothing can be rented now, as lines "node type: why". None: nobody says so."""
    told = gcs.get(RENT)
    said = json.loads(told) if told else {"text": None}
    return said["text"] if said["text"] and said["at"] > time.time() - OLD_S else None


def jobs(gcs: Gcs) -> list[dict]:
    """Every job of this Ray, oldest first: id, entrypoint, began, ended (None: it runs), state (JobState or None)."""
    found = []
    for job in sorted(gcs.jobs(), key=lambda job: job.began):
        told = gcs.get(JOB + job.id)
        found.append(asdict(job) | {"state": JobState(**json.loads(told)) if told else None})
    return found


def busy(gcs: Gcs) -> bool:
    """Whether a job that was told may still be saving."""
    return any(job["state"] and job["ended"] is None for job in jobs(gcs))


# -- the job's side ----------------------------------------------------------------------------------------------------


class Listener(threading.Thread):
    """Asks for a word once in a while, beside the training of rank 0."""

    def __init__(self, gcs: Gcs):
        super().__init__(daemon=True, name="notice")
        self.gcs = gcs
        self.stop: Stop | None = None
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(EVERY_S / 2):
            try:
                told = self.gcs.get(STOP)
            except GcsError as e:  # a busy head answers the next time
                say(f"notice: the head didn't answer, asking again: {e}")
                continue
            stop = Stop(**json.loads(told)) if told else None
            self.stop = stop if stop and stop.deadline > time.time() else None


def callback(run: Run, stage: str):
    """A TrainerCallback for every rank; `stopped` says why training was stopped, or is None. To be added after what seals
    checkpoints."""
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
            going = ray.train.get_preemption_info()  # a barrier too: all ranks are here
            self.next, why, self.stopped = from_rank_0(self.decide(state, going) if rank == 0 else None)
            if why and rank == 0:
                say(f"Saving at step {state.global_step}: {why}")
            control.should_save = control.should_save or bool(why)
            control.should_training_stop = control.should_training_stop or bool(self.stopped)

        def decide(self, state, going) -> tuple[int, str | None, str | None]:
            """(step of the next meeting; why to save now; why to stop now)"""
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
                return following, f"ranks {ranks} are on nodes that go away.", None
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
            except GcsError as e:  # training goes on; the next save tells it
                say(f"notice: the head didn't take where the job is: {e}")

    return Notice()
