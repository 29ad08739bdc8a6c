"""What ends a training run in Ray Train's controller, a process that imports this file and little else."""

from __future__ import annotations

from dataclasses import dataclass

import ray
from ray.train import ControllerError, UserCallback, WorkerGroupError
from ray.train.torch import TorchConfig

from lib import device
from lib.failure import worth_retrying


class StopWhenPointless(UserCallback):
    """Ends the run at an error that would come again, such as NaN. Ray restarts the workers for any, scale.max_failures times over,
    but retries no ControllerError."""

    def after_exception(self, run_context, worker_exceptions):
        failed = WorkerGroupError(f"{len(worker_exceptions)} workers failed", worker_exceptions)
        if not worth_retrying(failed):
            raise ControllerError(failed)


@dataclass
class UsableGpu(TorchConfig):
    """A TorchConfig that first looks whether each worker can use its GPU: torch's own set-up would fail in other words."""

    @property
    def backend_cls(self):
        class Backend(super().backend_cls):
            def on_start(self, worker_group, backend_config):
                try:
                    worker_group.execute(device.of_worker)
                except ray.exceptions.RayTaskError as e:
                    raise ControllerError(e) from e
                super().on_start(worker_group, backend_config)

        return Backend
