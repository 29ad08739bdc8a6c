"""What each Ray Train worker does: arguments, trainer, train from the last whole checkpoint, export."""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import time
from pathlib import Path

from lib import (
    checkpoint,
    data,
    epochs,
    finite,
    hardware,
    head,
    heldout,
    integrity,
    logs,
    lora,
    manifest,
    merging,
    models,
    notice,
    prefixes,
    provenance,
    strategy,
)
from lib.config import Job
from lib.failure import StopTraining
from lib.quantize import qat
from lib.rendering import whole
from lib.run import Run
from lib.tally import Tally

DEFAULTS = {
    "report_to": "none",
    "ddp_find_unused_parameters": False,
    "disable_tqdm": True,
    "logging_nan_inf_filter": False,  # the Trainer would log the last finite loss instead of NaN
    "save_total_limit": 2,
    "include_num_input_tokens_seen": "non_padding",  # kept in checkpoints, so that tokens/s survives a resume
}
"""Where we differ from the defaults of TRL's config classes; a job's `train:` section wins over these."""


class AllStepsDone(Exception):
    """The checkpoint resumed from is the last one: the weights are loaded, and only the export is missing."""


def arguments(job: Job, config_class: str, workers: int, output_dir: str):
    """Builds the TRL config of `config_class` ("module:Class") for this process's hardware and `workers` processes."""
    import torch

    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    precision = hardware.precision(job.scale.precision, device)
    per_device, accumulation = strategy.split_batch(job.scale.global_batch, job.scale.micro_batch, workers)
    user = dict(job.train)
    init = models.init_kwargs(job.model, precision, gpu) | (user.pop("model_init_kwargs", None) or {})
    strategy.allow_on_cpu(job.scale)
    module, name = config_class.split(":")
    derived = {
        "output_dir": output_dir,
        "per_device_train_batch_size": per_device,
        "per_device_eval_batch_size": job.scale.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": not gpu and not job.scale.strategy.startswith("zero"),
        "model_init_kwargs": init,
        **strategy.arguments(job.scale, gpu),
    }
    args = getattr(importlib.import_module(module), name)(
        **{**DEFAULTS, "dataloader_pin_memory": gpu, **user, **derived}
    )
    # lib/checkpoint.py deletes, knowing what's whole.
    args.keep_checkpoints, args.save_total_limit = args.save_total_limit, None
    return args, precision


def train_loop(config: dict) -> dict:
    """Entry point of every worker. config: {job: dict, build: function, config_class: str, rows: kinds of data, cluster: whether
    this Ray is one that others lead}.

    Returns rank 0's summary for provenance.json. Raises StopTraining where another try would fail the same way.
    """
    import ray.train

    run, context = Run(config["job"]["run"]), ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    if not run.is_run():
        raise StopTraining(
            f"run: worker {rank} can't see {run.path}. On several nodes it must be s3:// or a folder they all mount."
        )
    with logs.kept(run, f"worker-{rank}"):
        return _train(config, run, rank, workers)


def _train(config: dict, run: Run, rank: int, workers: int) -> dict:
    import torch
    from transformers import PrinterCallback
    from transformers.utils import logging

    from lib import exchange

    logging.disable_progress_bar()
    began = time.time()
    job, build = Job.from_dict(config["job"]), config["build"]
    torch.set_num_threads(job.scale.cpus_per_worker)
    scratch = checkpoint.scratch(run)
    args, precision = arguments(
        job, config["config_class"], workers, str(scratch) if run.remote else run.at("checkpoints")
    )
    _held = _claim(run) if rank == 0 else None  # held until this process ends
    barrier()
    board = scratch / "tensorboard" if run.remote else Path(run.at("tensorboard"))
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(board))
    step, refused = checkpoint.latest(run)
    barrier()
    if rank == 0:
        for line in refused:
            logs.say(line)
        logs.say(f"from step {step or 0} on {workers} × {args.device.type}, {precision}")
        checkpoint.set_aside_after(run, step)
    barrier()
    resume = checkpoint.fetch(run, step, scratch) if step else None
    head.project_labelled_only()
    try:
        counts = whole.count(job, args, config["rows"], share())
        trainer = build(job, args)
        if job.model.qat != "none":
            qat.prepare(trainer.model, job.model.qat)
        if job.model.adapter != "none":  # the driver may not have had the base to look into
            merging.check(trainer.model)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as e:
        raise StopTraining(f"{type(e).__name__}: {' '.join(str(e).split())}") from e
    if len(trainer.train_dataset) == 0:
        raise StopTraining(f"train.max_length: no row has any of its answer within {args.max_length} tokens. Raise it.")
    rows = data.load(job.data, config["rows"]).check.summary()  # of all rows; the driver may have seen a part
    rows["rendered"] = whole.summary(counts)
    if rank == 0:
        provenance.pin(run, "data.source", rows["sha256"], "its rows are")
    if job.model.adapter != "none":
        models.train_in_fp32(trainer.model)
    save_work(trainer, job.scale.strategy)
    trainer.remove_callback(PrinterCallback)  # lib/progress.py shows what it would print
    batch, examples = job.scale.global_batch, len(trainer.train_dataset)
    repeated = epochs.fill(trainer, batch)
    heldout.Heldout(trainer)
    per_epoch = (examples + repeated) // batch
    if repeated and rank == 0 and not 0 < args.max_steps < per_epoch:
        doing = f"repeats {repeated:,} from its start" if repeated > 0 else f"leaves out {-repeated:,}"
        logs.say(
            f"{examples:,} examples don't divide by {batch}: each epoch {doing}, so that its last step has {batch} too"
        )
    tally = Tally(trainer, began, batch, resume)
    trainer.add_callback(_keep_run(run, tally))
    word = notice.callback(run, job.stage) if config["cluster"] else None
    if word:
        trainer.add_callback(word)
    if waits := exchange.callback(trainer.model, job.scale.strategy):
        trainer.add_callback(waits)
    try:
        trainer.train(resume_from_checkpoint=resume)
    except AllStepsDone:
        trainer.log({"train_loss": 0.0})  # which lib/tally.py fills in: training itself ended before it was logged
    tally.stop()
    state = trainer.state
    strategy.check_wrapped(trainer, job.scale)
    if word and word.stopped and state.global_step < state.max_steps:
        raise StopTraining(word.stopped)
    if state.global_step < state.max_steps:
        raise StopTraining(f"training ended at step {state.global_step} of {state.max_steps}.")
    tally.check()
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    evaluated = time.time()
    folder = scratch / "export"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed here
    barrier()
    models.export(trainer, job.model, folder)
    if rank == 0:
        whole.stop_at_turn_ends(folder / "model", counts, trainer.processing_class)
    made, train_loss = publish(run, folder) if rank == 0 else {}, tally.mean_loss()
    if rank == 0 and run.remote and board.exists():
        run.put(board, "tensorboard")
    barrier()
    seconds = tally.seconds()
    return {
        **made,
        "steps": state.global_step,
        "starts": tally.starts(),
        "repeated_rows": repeated * (state.global_step // per_epoch),
        "precision": precision,
        "workers": workers,
        "tokens": state.num_input_tokens_seen,
        "tokens_per_second": tally.speed().get("train_tokens_per_second"),
        "train_loss": train_loss,
        "peak_memory_bytes": tally.peak(),
        "template_sha256": models.template_sha256(trainer.processing_class),
        "seconds": seconds | {"heldout": evaluated - tally.trained, "export": time.time() - evaluated},
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu × {job.scale.cpus_per_worker}",
        "train": json.loads(args.to_json_string()),
        "data": rows,
    }


def save_work(trainer, strategy: str) -> None:
    """Fewer operations for the same losses, where the models are of a kind that allows it (lib/prefixes.py, lib/lora.py)."""
    for model in filter(None, (trainer.model, getattr(trainer, "ref_model", None))):
        prefixes.install(model)
    if strategy == "ddp":  # sharded weights are gathered by the layers that lib/lora.py passes by
        lora.install(trainer.model)


def _claim(run: Run):
    """Waits until no other process trains into a local run: after a kill -9 of the driver, its workers live on for seconds."""
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


def publish(run: Run, folder: Path) -> dict:
    """Moves what export wrote into the run, if all of it is finite. Returns what provenance.json is to hold of it: the size and
    SHA-256 of each file, and model_sha256 over the names and bytes of model/. Raises StopTraining."""
    finite.check_files(folder)
    made = {part: manifest.hashes(folder / part) for part in integrity.PARTS if (folder / part).exists()}
    for part, files in made.items():
        run.put(folder / part, part)
        if not run.remote and (why := integrity.changed(Path(run.at(part)), files, manifest.digest(files))):
            raise StopTraining(
                f"run: {part}/ of {run.path} could not be written: {why}. Check the disk, then --resume."
            )
    shutil.rmtree(folder)
    files = {f"{part}/{name}": v for part in made for name, v in made[part].items()}
    return {"model_sha256": manifest.digest(made["model"]), "files": files}


def share() -> tuple[int, int]:
    """(this worker's number, how many there are)."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def barrier() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


def _keep_run(run: Run, tally: Tally):
    """Keeps the run directory true while training: metrics.jsonl, sealed checkpoints, and a stop at NaN."""
    from transformers import TrainerCallback

    class KeepRun(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            tally.on_train_begin(state)
            if args.process_index == 0:  # what was logged after the checkpoint will be logged again
                run.write_text("metrics.jsonl", "".join(_line(row, state) for row in state.log_history))
            if state.global_step >= state.max_steps:  # the Trainer would take one more step
                raise AllStepsDone

        def on_log(self, args, state, control, logs=None, **kwargs):
            row = state.log_history[-1]
            for key, name in (("loss", "loss"), ("grad_norm", "grad_norm"), ("eval_loss", "held-out loss")):
                if not math.isfinite(float(row.get(key, 0.0))):
                    raise StopTraining(f"{name} is {row[key]} at step {state.global_step}. {finite.REMEDY}")
            if args.process_index == 0:
                run.append_text("metrics.jsonl", _line(row, state))

        def on_save(self, args, state, control, **kwargs):
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            try:
                tally.check()
            except StopTraining:
                barrier()
                if int(os.environ.get("LOCAL_RANK", 0)) == 0:
                    shutil.rmtree(folder)
                raise
            tally.save(folder)
            checkpoint.seal(run, folder, args.keep_checkpoints)

    return KeepRun()


def _line(row: dict, state) -> str:
    return json.dumps({"time": round(time.time(), 2)} | row | {"max_steps": state.max_steps}, sort_keys=True) + "\n"
