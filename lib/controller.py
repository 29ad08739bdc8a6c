"""Ray Train's controller, run by the driver itself, and restarting workers only where that can help.

Ray would start a process for it, which imports for three seconds and is one more thing to lose: the driver waits for it
anyway. Here the driver is the controller, so a Ctrl-C ends both, and a placement group belongs to the job and ends with it.
"""

from __future__ import annotations

import asyncio
import logging
import os

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    RestartingState,
    SchedulingState,
)
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.exceptions import WorkerGroupError

from lib import device, waiting
from lib.failure import StopTraining, worth_retrying
from lib.logs import say

NEEDLESS = (DatasetsCallback, PlacementGroupCleanerCallback)
"""Processes that we have no work for: one for Ray datasets (our rows are files, lib/data/load.py), and one that frees the
placement group of a controller that died without its job."""


class Trainer(TorchTrainer):
    """A TorchTrainer whose `fit` runs the controller in this process."""

    def _create_default_callbacks(self):
        ours = [UsableGpu()] if self.scaling_config.use_gpu else []  # before torch's process group is made on it
        if os.environ.get("RAY_ADDRESS"):
            ours.append(Told(self.scaling_config))
        return ours + [c for c in super()._create_default_callbacks() if not isinstance(c, NEEDLESS)]

    def _initialize_and_run_controller(self, **kwargs):
        kwargs["failure_policy"] = StopWhenPointless(self.run_config.failure_config)
        if not os.environ.get("RAY_ADDRESS") and isinstance(kwargs["scaling_policy"], FixedScalingPolicy):
            kwargs["scaling_policy"] = AsPlanned(self.scaling_config)
        controller = Controller(**kwargs)
        logging.getLogger(TrainController.__module__).addFilter(explained_elsewhere)
        try:
            asyncio.run(controller.run())
        finally:
            for told in (c for c in kwargs["callbacks"] if isinstance(c, Told)):
                told.waiting.end()
        return controller.get_result()


def explained_elsewhere(record: logging.LogRecord) -> bool:
    """False for the tracebacks of what ends in a line of ours: workers that were not there in time, GPUs that can't be used."""
    return not (record.exc_info and isinstance(record.exc_info[1], WorkerGroupStartupTimeoutError | StopTraining))


class UsableGpu(WorkerGroupCallback):
    """Stops the job where a worker's GPU can't be used."""

    def after_execution_group_start(self, execution_group):
        execution_group.execute(device.of_worker)


class Told(ControllerCallback):
    """Prints what the cluster does for workers that are waited for."""

    def __init__(self, scaling):
        each, workers = scaling._resources_per_worker_not_none, scaling.num_workers
        self.waiting = waiting.of_cluster(workers, each)

    def after_controller_start(self, train_run_context):
        self.waiting.begin()

    def after_controller_state_update(self, previous_state, current_state):
        if isinstance(current_state, InitializingState | SchedulingState | ReschedulingState | RestartingState):
            self.waiting.begin()
        else:
            self.waiting.end()


class StopWhenPointless(DefaultFailurePolicy):
    """Ray would restart the workers for any error, such as NaN, and so fail max_failures times over."""

    def make_decision(self, training_failed_error):
        if isinstance(training_failed_error, WorkerGroupError) and not worth_retrying(training_failed_error):
            return FailureDecision.RAISE
        decision = super().make_decision(training_failed_error)
        failed = getattr(training_failed_error, "controller_failure", None)
        if decision == FailureDecision.RETRY and isinstance(failed, WorkerGroupStartupFailedError):
            cause = " ".join(str(failed.__cause__ or failed).split())[:300]
            say(f"A worker's process did not start, trying again: {cause}")
        return decision


class AsPlanned(FixedScalingPolicy):
    """On a Ray of our own there is no autoscaler to ask for the workers, nor a process to start for asking."""

    def after_controller_start(self, train_run_context):
        pass

    def _maybe_send_resource_request(self):
        pass


class Workers(WorkerGroup):
    """Workers that have no controller to call: as Ray's, but for `controller_actor`, which no report of ours needs."""

    def _init_train_context_on_workers(self, workers, sync_actor, train_context_args):
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=sync_actor,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,
                    **{name: values[i] for name, values in train_context_args.items()},
                )
                for i, worker in enumerate(workers)
            ]
        )
        self._decorate_worker_log_file_paths(workers)


class Controller(TrainController):
    worker_group_cls = Workers
