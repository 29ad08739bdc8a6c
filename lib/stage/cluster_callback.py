"""Saving and stopping a training job when its cluster asks for it (lib/runtime/cluster_signals.py).

All ranks have to save at the same step: about every EVERY_S seconds they synchronise, at a step agreed on the time before, and follow
rank 0's decision. Between these steps the cost is one integer comparison per step.
"""

from __future__ import annotations

import os
import time
from typing import Any

import ray.train
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lib.distributed.collectives import from_rank_0, gathered, share
from lib.run import Run
from lib.runtime.cluster_signals import JobState, Listener, Stop, report
from lib.runtime.gcs import Gcs
from lib.runtime.logs import say

EVERY_S = 2.0
MOST_STEPS = 1000
"""Upper bound on the steps between two synchronisations, however fast steps are."""


class ClusterCallback(TrainerCallback):
    """For every rank; add it after the callback that seals checkpoints. `stopped`: why training was stopped, or None.

    local: whether training runs in Ray Train's local mode, in which Ray gives no notice of preemptions. cycle: steps between those
    from which a run can be resumed.
    """

    def __init__(self, run: Run, stage: str, local: bool = False, cycle: int = 1):
        self.run, self.stage, self.local, self.cycle = run, stage, local, cycle
        self.rank = share()[0]
        self.stopped: str | None = None
        self.saved: float | None = None
        self.preempted: ray.train.PreemptionInfo | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.met = self.began = (time.time(), state.global_step)
        self.next = state.global_step + 1
        self.nodes = tuple(sorted({n for n in gathered(os.environ.get("RAY_CLOUD_INSTANCE_ID")) if n}))
        if self.rank == 0:
            self.gcs = Gcs(ray.get_runtime_context().gcs_address)
            self.listener = Listener(self.gcs)
            self.listener.start()
            self._report(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step < self.next or state.global_step % self.cycle:
            return
        going = None if self.local else ray.train.get_preemption_info()  # also a barrier for all ranks
        decision = self.decide(state, going, time.time()) if self.rank == 0 else None
        self.next, why, self.stopped = from_rank_0(decision)
        if why and self.rank == 0:
            say(f"Saving at step {state.global_step}: {why}")
        control.should_save = control.should_save or bool(why)
        control.should_training_stop = control.should_training_stop or bool(self.stopped)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.saved = time.time()
        if self.rank == 0:
            self._report(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.rank == 0:
            self.listener.over.set()
            self._report(state)

    def decide(
        self, state: TrainerState, going: ray.train.PreemptionInfo | None, now: float
    ) -> tuple[int, str | None, str | None]:
        """Returns (step of the next synchronisation, why to save now or None, why to stop now or None).

        going: nodes that are about to be preempted; now: Unix time.
        """
        (then, last), self.met = self.met, (now, state.global_step)
        steps = int(EVERY_S * (state.global_step - last) / max(now - then, 1e-6))
        following = state.global_step + min(max(steps, 1), MOST_STEPS)
        if stop := self.listener.stop:
            return following, stop.text, f"{stop.text} {self.to_finish(state, stop, now)}"
        if going and going != self.preempted:
            self.preempted = going
            ranks = ", ".join(map(str, going.preempted_ranks))
            return following, f"ranks {ranks} are on nodes that are going away.", None
        return following, None, None

    def to_finish(self, state: TrainerState, stop: Stop, now: float) -> str:
        """What the remaining steps would cost, at the mean time of the steps since this attempt began."""
        left, done = state.max_steps - state.global_step, state.global_step - self.began[1]
        seconds = (now - self.began[0]) / done
        usd = left * seconds * stop.usd_per_hour / 3600
        return (
            f"Saved at step {state.global_step} of {state.max_steps}; the other {left}, at {seconds:.2g} s and "
            f"${stop.usd_per_hour:.3g} an hour, cost about ${usd:.2f} more."
        )

    def _report(self, state: TrainerState) -> None:
        progress = (self.began[0], state.global_step, state.max_steps, self.saved)
        report(
            self.gcs, ray.get_runtime_context().get_job_id(), JobState(self.run.path, self.stage, self.nodes, *progress)
        )
