"""One trial: an ordinary training run in a process of Ray Tune, which reports at each checkpoint."""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lib.config.command_line import Request
from lib.config.job import Job
from lib.run import Run
from lib.runtime import failure, provenance
from lib.stage import plan, training
from tune import evaluation
from tune.settings import Settings

BOARD = os.environ.get("TENSORBOARD_LOGGING_DIR")
"""Where the user wants all event files. None: in each run, whose worker sets the variable."""


def trial(config: dict[str, Any]) -> None:
    """Entry point in Tune's process. config: jobs (JSON of Job.to_dict of each); run and from, if it begins with a checkpoint of another run, and the
    tokens which that has trained on; search (JSON of the Settings) and half, if a task is the metric; and number, which only the scheduler
    reads.

    Ends with a report that has `outcome`: finished; failed, or cut off by the cluster, with `why`. If its process or node is lost, the search
    starts the trial again.
    """
    from ray import tune

    began, jobs = time.time(), [Job.from_dict(job) for job in json.loads(config["jobs"])]
    *earlier, job = jobs
    run = current = Run(job.run)
    runs = [Run(j.run) for j in jobs]
    before = sum(a.get("seconds", 0.0) for r in runs if r.is_run() for a in provenance.attempted(r, began)[:-1])

    def report(row: dict[str, Any]) -> None:
        row["tokens"] = row.get("num_input_tokens_seen", 0) - config.get("tokens", 0)
        row["tokens"] += sum(r.provenance().get("tokens", 0) for r in runs[:-1] if r.is_run())
        # As text, because Tune flattens dictionaries and adds numbers of its own.
        tune.report({"row": json.dumps(row | {"seconds": before + time.time() - began})})

    def report_earlier(row: dict[str, Any]) -> None:
        report(row | {"earlier": True})

    measured: dict[str, float] = {}
    try:
        for each in earlier:
            _as_a_new_process(each)
            current = Run(each.run)
            _trained(each, current, time.time(), report_earlier, {})
            report_earlier({})
        _as_a_new_process(job)
        current = run
        outcome = _trained(job, run, began, report, config)
        if "search" in config:
            gc.collect()  # the trainer: its model would stay in memory beside the one that is measured
            measured = evaluation.measured(Settings.of(json.loads(config["search"])), job, run, config["half"])
    except SystemExit:  # tune.report raises it in a trial that should stop
        provenance.ended(current, "interrupted")
        raise
    except Exception as e:
        if failure.worth_retrying(e):
            raise
        by_cluster = "ClusterStopTraining" in failure.text_of(e)  # of a group of workers, Ray keeps only the text
        outcome = {"outcome": "cut off" if by_cluster else "failed", "why": failure.explain(e)}
    report(merged(run.metrics()) | measured | outcome)


def _trained(
    job: Job, run: Run, began: float, report: Callable[[dict[str, Any]], None], config: dict[str, Any]
) -> dict[str, str]:
    if job.scale.workers == 1:
        _train(job, run, began, Reports(report), config)
        return {"outcome": "finished", "why": ""}
    from ray.util.queue import Queue

    rows, done = Queue(actor_options={"num_cpus": 0}), dict[str, Any]()

    def work() -> None:
        try:
            _train(job, run, began, Reports(rows.put), config)
        except BaseException as e:  # raised again below
            done["error"] = e
        rows.put(None)

    threading.Thread(target=work, daemon=True).start()
    while (row := rows.get()) is not None:
        report(row)
    rows.shutdown()
    if "error" in done:
        raise done["error"]
    return {"outcome": "finished", "why": ""}


def _as_a_new_process(job: Job) -> None:
    """Prepares this process, which may have trained before, for a job that computes what it does in a process of its own."""
    import torch

    gc.collect()  # an earlier trainer
    if not BOARD:
        os.environ.pop("TENSORBOARD_LOGGING_DIR", None)  # that of an earlier run
    torch.manual_seed(torch.Generator().initial_seed())
    sys.argv = [f"jobs/{job.stage}.py", "--resume", Run(job.run).path]  # the command in provenance.json


def _train(job: Job, run: Run, began: float, callback: TrainerCallback, config: dict[str, Any]) -> None:
    """Trains to the job's end, unless the run is finished already."""
    stage = importlib.import_module(f"jobs.{job.stage}").STAGE
    if (fresh := not run.is_run()) and run.exists():
        run.remove("")  # a copy of a checkpoint that a kill cut off
    planned = plan.make(Request(job, resume=not fresh), stage)
    if planned.finished:
        return
    if fresh and "from" in config:
        copy(Run(config["run"]), run, config["from"])
    training.train(planned, stage, began, callback)


def copy(parent: Run, run: Run, rel: str) -> None:
    """Copies the folder `rel` to another run on the same disk (as hard links) or store."""
    if run.remote:
        run.fs.copy(f"{parent.at(rel)}/", f"{run.at(rel)}/", recursive=True)
    else:
        shutil.copytree(parent.at(rel), run.at(rel), copy_function=os.link)


class Reports(TrainerCallback):
    """Sends the numbers logged last at each checkpoint, once it is whole. send: called on rank 0."""

    def __init__(self, send: Callable[[dict[str, Any]], None]):
        self.send = send

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step:  # the process may have been lost before the report; the search ignores one that it has
            self._send(args, state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step < state.max_steps:  # the end has a report of its own
            self._send(args, state)

    def _send(self, args: TrainingArguments, state: TrainerState) -> None:
        if args.process_index or state.global_step % args.save_steps:
            return  # a checkpoint between measurements, such as one before a preemption
        self.send(merged([row for row in state.log_history if row["step"] <= state.global_step]))


def merged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the last value of each number in rows of metrics.jsonl."""
    found: dict[str, Any] = {"step": 0}
    for row in rows:
        found |= {k: v for k, v in row.items() if isinstance(v, int | float) and k not in ("time", "max_steps")}
    return found
