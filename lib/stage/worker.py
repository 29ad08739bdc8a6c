"""The work of each Ray Train worker: build the arguments and the trainer, train from the last whole checkpoint, export the model."""

from __future__ import annotations

import json
import os
import shutil
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib import data
from lib.config.job import Job
from lib.distributed import strategy
from lib.distributed.collectives import barrier, share
from lib.distributed.publish import publish
from lib.methods import heldout, neftune
from lib.models import cpu_lora, export, lm_head, load, merging, prefixes
from lib.models.chat_template import template_sha256
from lib.models.quantization import qat
from lib.rendering import whole
from lib.rendering.counts import Counts
from lib.run import Run
from lib.runtime import checkpoint, logs, provenance
from lib.runtime.failure import ClusterStopTraining, StopTraining
from lib.runtime.tally import Tally
from lib.stage import epochs
from lib.stage.stage import Stage
from lib.stage.training_arguments import arguments

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from transformers import Trainer, TrainerCallback


@dataclass(frozen=True)
class Summary:
    """The results of a finished run, stored in provenance.json."""

    model_sha256: str
    """Digest of the file names and contents of model/."""
    files: dict[str, dict]
    """{"model/NAME" or "adapter/NAME": size and SHA-256}"""
    steps: int
    starts: int
    """Number of times that a group of workers began to train."""
    repeated_rows: int
    """Rows that were repeated to fill the last step of each epoch, over all epochs. Negative: rows left out instead."""
    precision: str
    workers: int
    tokens: int
    tokens_per_second: float | None
    """None: no step was timed."""
    train_loss: float
    """Mean over all steps."""
    peak_memory_bytes: int
    """Of rank 0."""
    template_sha256: str
    seconds: dict[str, float]
    hardware: str
    train: dict
    """Every field of the TRL config, with the values used."""
    data: dict


def train_loop(job: dict, stage: Stage, on_cluster: bool, callback: TrainerCallback | None = None) -> Summary | None:
    """Entry point of every worker. job: a Job as Job.to_dict returns it. on_cluster: whether this is an existing cluster (RAY_ADDRESS)
    and not a Ray started by the job. callback: added to the trainer, after the one that seals checkpoints.

    Returns the Summary on rank 0, None elsewhere. Raises StopTraining if a retry would fail in the same way.
    """
    run, (rank, workers) = Run(job["run"]), share()
    if not run.is_run():
        raise StopTraining(
            f"run: worker {rank} can't see {run.path}. On several nodes it must be s3:// or a folder they all mount."
        )
    with logs.kept(run, f"worker-{rank}"):
        try:
            return _train(Job.from_dict(job), stage, on_cluster, run, rank, workers, callback)
        except Exception:
            traceback.print_exc()  # goes to the run's logs; the driver prints a one-paragraph summary
            raise


def _train(
    job: Job, stage: Stage, on_cluster: bool, run: Run, rank: int, workers: int, callback: TrainerCallback | None
) -> Summary | None:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types here
    began = time.time()
    torch.set_num_threads(job.scale.cpus_per_worker)
    scratch = checkpoint.scratch(run)
    args, precision = arguments(job, stage.config, workers, str(scratch) if run.remote else run.at("checkpoints"))
    _held = _claim(run) if rank == 0 else None  # held until this process ends
    barrier()
    board = scratch / "tensorboard" if run.remote else Path(run.at("tensorboard"))
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(board))
    resume = _checkpoint(run, scratch, f"{workers} × {args.device.type}, {precision}")
    trainer, counts, rows = _build(job, stage, args, run)
    prompts = getattr(trainer, "group_sampler", None)  # of each step, if the model answers them itself
    repeated, per_epoch = _fill_epochs(trainer, prompts.per_step if prompts else job.scale.global_batch)
    held = heldout.Heldout(trainer)
    tally = Tally(trainer, began, job.scale.global_batch, resume)
    trained = _run_steps(trainer, job, run, tally, resume, on_cluster, callback)
    if trainer.eval_dataset is not None:
        trainer.evaluate()
        if rank == 0:
            run.write_json("heldout.json", {"batches": held.batches})
    evaluated = time.time()
    made = _export(trainer, job, run, scratch / "export", counts)
    train_loss = tally.mean_loss()
    if rank == 0 and run.remote and board.exists():
        run.put(board, "tensorboard")
    barrier()
    seconds = tally.seconds() | {"heldout": evaluated - trained, "export": time.time() - evaluated}
    speed, peak = tally.speed().get("train_tokens_per_second"), tally.peak()
    if rank:
        return None
    steps = trainer.state.global_step
    tokenizer: Any = trainer.processing_class  # a text model's is its tokenizer
    return Summary(
        **made,
        steps=steps,
        starts=tally.starts(),
        repeated_rows=repeated * (steps // (per_epoch * getattr(trainer, "cycle", 1))),
        precision=precision,
        workers=workers,
        tokens=trainer.state.num_input_tokens_seen,
        tokens_per_second=speed,
        train_loss=train_loss,
        peak_memory_bytes=peak,
        template_sha256=template_sha256(tokenizer),
        seconds=seconds,
        hardware=torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu × {job.scale.cpus_per_worker}",
        train=json.loads(args.to_json_string()),
        data=rows,
    )


def _checkpoint(run: Run, scratch: Path, scale: str) -> str | None:
    """Returns a local path of the newest whole checkpoint, or None, and clears the way for the steps after it. scale: for the first line."""
    step, refused = checkpoint.latest(run)
    barrier()  # every rank has looked before rank 0 removes anything
    if share()[0] == 0:
        for line in refused:
            logs.say(line)
        logs.say(f"from step {step or 0} on {scale}")
        checkpoint.set_aside_after(run, step)
    barrier()
    return checkpoint.fetch(run, step, scratch) if step else None


def _build(job: Job, stage: Stage, args: Any, run: Run) -> tuple[Trainer, dict[str, Counts], dict]:
    """Returns (the stage's trainer, ready to train; lib.rendering's counts of its rows; the data section of provenance.json).

    Raises StopTraining for whatever a retry would meet again.
    """
    lm_head.project_labelled_only()
    try:
        loaded = data.load(job.data, stage.rows)
        counts = whole.count(job, args, loaded, share())
        trainer = stage.build(job, args, loaded)
        if job.model.qat != "none":
            qat.prepare(trainer.model, job.model.qat)
        if job.model.adapter != "none":  # the driver may have had no local copy of the base to check
            merging.check(trainer.model)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as e:
        raise StopTraining(f"{type(e).__name__}: {' '.join(str(e).split())}") from e
    if epochs.examples(trainer) == 0:
        raise StopTraining(f"train.max_length: no row has any of its answer within {args.max_length} tokens. Raise it.")
    rows = loaded.check.summary()  # of all rows; the driver may have read only some of them
    rows["rendered"] = whole.summary(counts)
    if share()[0] == 0:
        provenance.pin(run, "data.source", rows["sha256"], "its rows are")
    if job.model.adapter != "none":
        load.prepare_adapter(trainer, job.model.adapter)
    save_work(trainer, job.scale.strategy)
    return trainer, counts, rows


def _fill_epochs(trainer: Trainer, batch: int) -> tuple[int, int]:
    """Makes each epoch a whole number of steps of `batch` examples. Returns (rows repeated an epoch, negative: left out; its steps)."""
    examples = epochs.examples(trainer)
    repeated = epochs.fill(trainer, batch)
    per_epoch = (examples + repeated) // batch
    if repeated and share()[0] == 0 and not 0 < trainer.args.max_steps < per_epoch:
        doing = f"repeats {repeated:,} from its start" if repeated > 0 else f"leaves out {-repeated:,}"
        logs.say(
            f"{examples:,} examples are not a multiple of {batch}: each epoch {doing}, so that its last step has {batch} too"
        )
    return repeated, per_epoch


def _run_steps(
    trainer: Trainer,
    job: Job,
    run: Run,
    tally: Tally,
    resume: str | None,
    on_cluster: bool,
    callback: TrainerCallback | None,
) -> float:
    """Trains to the last step and returns when it ended (Unix time). Raises StopTraining if training ended before it, or if a number
    isn't finite."""
    from transformers import PrinterCallback

    from lib.distributed import link_warning
    from lib.stage.cluster_callback import ClusterCallback
    from lib.stage.run_callback import AllStepsDone, RunCallback
    from lib.stage.schedule_callback import ScheduleCallback

    trainer.remove_callback(PrinterCallback)  # lib/stage/progress.py shows what it would print
    trainer.add_callback(RunCallback(run, tally))
    if job.schedule.learning_rate or job.schedule.weight_decay:
        trainer.add_callback(ScheduleCallback(job.schedule))
    if callback:
        trainer.add_callback(callback)
    local, cycle = bool(callback) and job.scale.workers == 1, getattr(trainer, "cycle", 1)
    cluster = ClusterCallback(run, job.stage, local, cycle) if on_cluster else None
    if cluster:
        trainer.add_callback(cluster)
    if link := link_warning.callback(trainer.model, job.scale.strategy):
        trainer.add_callback(link)
    try:
        trainer.train(resume_from_checkpoint=resume)
    except AllStepsDone:  # the training loss isn't logged yet; lib/runtime/tally.py replaces it by the run's mean
        trainer.log({"train_loss": 0.0})
    ended = tally.stop()
    state = trainer.state
    strategy.check_wrapped(trainer, job.scale)
    if cluster and cluster.stopped and state.global_step < state.max_steps:
        raise ClusterStopTraining(cluster.stopped)
    if state.global_step < state.max_steps:
        raise StopTraining(f"training ended at step {state.global_step} of {state.max_steps}.")
    tally.check()
    return ended


def _export(trainer: Trainer, job: Job, run: Run, folder: Path, counts: dict[str, Counts]) -> dict:
    """Writes the model to `folder` and publishes it into the run. Returns its digest and files on rank 0, {} elsewhere."""
    shutil.rmtree(folder, ignore_errors=True)  # left by an attempt that was killed on this node
    barrier()
    export.export(trainer, job.model, folder)
    if share()[0]:
        return {}
    whole.stop_at_turn_ends(folder / "model", counts, trainer.processing_class)
    return publish(run, folder)


def save_work(trainer: Trainer, strategy: str) -> None:
    """Installs faster computations of the same losses in the models that support them (lib/models/prefixes.py, lib/models/cpu_lora.py)."""
    packed = getattr(trainer, "packed", False)  # blocks of text share no prefixes
    packed = neftune.install(trainer) or packed  # nor do rows whose noise differs
    for model in filter(None, (trainer.model, getattr(trainer, "ref_model", None))):
        if not packed:
            prefixes.install(trainer.accelerator.unwrap_model(model))  # TRL wraps a reference for DeepSpeed
    if strategy == "ddp":  # sharded weights are gathered by running the layers that lib/models/cpu_lora.py bypasses
        cpu_lora.install(trainer.model)


def _claim(run: Run) -> BaseFileLock | None:
    """Returns the lock on a local run, waiting up to 60 s for it: after a kill -9 of the driver, its workers live on for seconds."""
    from filelock import FileLock, Timeout

    if run.remote:  # an object store has no locks
        return None
    lock = FileLock(run.at(".lock"))
    try:
        lock.acquire(timeout=60)
    except Timeout:
        raise StopTraining(
            f"run: another process is training into {run.path}. Wait for it or end it, then --resume."
        ) from None
    return lock
