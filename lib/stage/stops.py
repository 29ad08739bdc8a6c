"""Stops a training run from Ray Train's controller. That process unpickles these classes, so this file imports little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.train import ControllerError, UserCallback, WorkerGroupError
from ray.train.torch import TorchConfig

from lib.runtime import device
from lib.runtime.failure import worth_retrying


class StopWhenPointless(UserCallback):
    """Ends the run at an error that would recur, such as NaN. Ray restarts the workers after any error, up to scale.max_failures
    times, but doesn't retry a ControllerError."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        failed = WorkerGroupError(f"{len(worker_exceptions)} workers failed", worker_exceptions)
        if not worth_retrying(failed):
            raise ControllerError(failed)


@dataclass
class UsableGpu(TorchConfig):
    """A TorchConfig that first checks that each worker can use its GPU. Without it, torch's own set-up fails with a less clear error."""

    @property
    def backend_cls(self) -> type:
        class Backend(super().backend_cls):  # type: ignore[misc]  # a class that is known when this runs
            def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
                try:
                    worker_group.execute(device.of_worker)
                except ray.exceptions.RayTaskError as e:
                    raise ControllerError(e) from e
                super().on_start(worker_group, backend_config)

        return Backend
