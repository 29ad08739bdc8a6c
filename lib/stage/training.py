"""One training run on the connected Ray: Ray Train starts the workers, restarts lost ones, and stops at errors that a retry can't fix."""

from __future__ import annotations

import os
import threading
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train.torch import TorchTrainer

from lib.models import from_scratch
from lib.run import Run
from lib.runtime import device, hardware, provenance, ray_session, resume, waiting
from lib.runtime.failure import explain
from lib.stage.plan import Plan
from lib.stage.progress import Progress
from lib.stage.stage import Stage
from lib.stage.stops import StopWhenPointless, UsableGpu
from lib.stage.worker import Summary, train_loop

if TYPE_CHECKING:
    from transformers import TrainerCallback


def train(planned: Plan, stage: Stage, began: float | None = None, callback: TrainerCallback | None = None) -> Summary:
    """Trains to the planned end and records the run as finished.

    Uses the Ray that is connected; otherwise connects, and disconnects at the end. began: start of the attempt (Unix time);
    None: now. callback: for a trial of a search, added to the trainer on every worker; a single worker is then this process, and no
    progress is printed. On an error or KeyboardInterrupt, records the run as failed or interrupted, so that it can be resumed, and reraises.
    """
    run = Run(planned.job.run)
    try:
        return _train(planned, stage, run, began or time.time(), callback)
    except KeyboardInterrupt:
        provenance.ended_or_said(run, "interrupted")
        raise
    except Exception as e:
        provenance.ended_or_said(run, "failed", failure=explain(e, run))
        raise


def _train(planned: Plan, stage: Stage, run: Run, began: float, callback: TrainerCallback | None) -> Summary:
    planned = replace(planned, job=from_scratch.placed(planned.job))
    before = run.provenance().get("model_sha256")
    attempts = _begin(planned, run, began)
    with ray_session.connected(), nullcontext() if callback else Progress(run):
        trainer: Any = _trainer(planned, stage, run, callback)
        summary: Summary = trainer.fit().return_value if trainer.running_in_local_mode else _fit(trainer, planned)
    seconds = dict(summary.seconds)
    total = sum(a["seconds"] for a in attempts[:-1]) + time.time() - began
    # The remainder is start-up and, if the run was restarted, also lost work and further start-ups.
    rest = "start" if summary.starts == len(attempts) == 1 else "restarts"
    seconds[rest] = max(0.0, total - sum(seconds.values()))
    provenance.ended(run, "finished", **asdict(summary) | {"seconds": seconds | {"total": sum(seconds.values())}})
    if before and before != summary.model_sha256:
        now = summary.model_sha256[:12]
        print(
            f"model/ differs from before ({before[:12]}, now {now}): runs that were started from it can no longer be resumed."
        )
    return summary


def _begin(planned: Plan, run: Run, began: float) -> list[dict]:
    """Writes job.yaml and the first fields of provenance.json. Returns the run's attempts, this one last."""
    import yaml

    job = planned.job
    run.write_text("job.yaml", yaml.safe_dump(job.to_dict(), sort_keys=False, allow_unicode=True))
    named = dict(planned.identities)
    begun = provenance.origin(
        job.stage, job.to_dict(), job.model.base, named.pop("model.base"), planned.check.summary()
    )
    attempts = provenance.attempted(run, began)
    begun |= {"identities": run.provenance().get("identities", {}) | named, "attempts": attempts}
    provenance.record(run, begun | {"chat_template_sha256": resume.template_digest(planned.template)})
    return attempts


def _fit(trainer: TorchTrainer, planned: Plan) -> Summary:
    """Calls trainer.fit() in a thread, where Ray installs no SIGINT handler: Ctrl-C raises KeyboardInterrupt here at once."""
    done: dict = {}

    def work() -> None:
        try:
            result: Any = trainer.fit()
            done["summary"] = result.return_value
        except BaseException as e:  # reraised below, in the waiting thread
            done["error"] = e

    thread = threading.Thread(target=work, daemon=True, name="ray.train")
    with waiting.of_cluster(*_group(planned), in_groups=True):
        thread.start()
        thread.join()
    if "error" in done:
        raise done["error"]
    return done["summary"]


def _group(planned: Plan) -> tuple[int | tuple[int, int], dict[str, float]]:
    """Returns (number of workers, or (fewest, most) of an elastic run; resources of each worker)."""
    s = planned.job.scale
    elastic = (s.min_workers, s.workers) if s.min_workers and s.min_workers < s.workers else s.workers
    resources: dict[str, float] = {"CPU": s.cpus_per_worker, **({"GPU": 1} if _gpu(planned) else {})}
    return elastic, resources


def _gpu(planned: Plan) -> bool:
    settled = planned.device or device.settle(planned.job.scale)
    assert settled, "the cluster is connected"
    return settled.gpu


def _trainer(planned: Plan, stage: Stage, run: Run, callback: TrainerCallback | None) -> TorchTrainer:
    s, gpu, on_cluster = planned.job.scale, _gpu(planned), bool(os.environ.get("RAY_ADDRESS"))
    workers, resources = _group(planned)
    if callback and workers == 1:
        workers = 0  # Ray Train's local mode: in this process
    storage: dict[str, Any] = {"storage_path": run.path if not run.remote else run.path.split("://", 1)[1]}
    if run.remote:
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        storage["storage_filesystem"] = PyFileSystem(FSSpecHandler(run.fs))
    # With offload, FSDP clips gradients in host memory, which needs gloo.
    backend = "cpu:gloo,cuda:nccl" if gpu and s.offload else None
    job = planned.job.to_dict()

    def loop() -> Summary | None:
        """A closure is unpickled by the workers only, so the controller need not import the stage's modules."""
        return train_loop(job, stage, on_cluster, callback)

    v2: Any = ray.train  # type checkers see the first version of Ray Train, whose configs lack fields that are set here
    trainer: TorchTrainer = v2.torch.TorchTrainer(
        loop,
        scaling_config=v2.ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker=resources, elastic_resize_monitor_interval_s=10.0
        ),
        run_config=v2.RunConfig(
            name="ray",
            # A cluster may take any time to add nodes; a Ray started here has a fixed size.
            failure_config=v2.FailureConfig(
                max_failures=s.max_failures, controller_failure_limit=-1 if on_cluster else 3
            ),
            logging_config=v2.LoggingConfig(log_level="CRITICAL"),
            worker_runtime_env={"env_vars": hardware.worker_env(s, gpu)},
            callbacks=[StopWhenPointless()],
            **storage,
        ),
        torch_config=UsableGpu(backend=backend, timeout_s=600),
    )
    return trainer
