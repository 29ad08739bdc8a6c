"""The driver's side of every stage: check, connect to Ray, train, record what happened, say what to do next."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import time
from pathlib import Path

from lib import cli, device, fields, logs, plan, provenance, ray_start, resume, termination
from lib.preflight import Preflight
from lib.run import Run


def main(build, config: str, rows: tuple[str, ...], models: tuple[str, ...] = (), check=None, after=None) -> None:
    """Runs the stage whose file defines `build(job, args) -> transformers.Trainer`.

    config: "module:Class" of the TRL config that `train:` takes its fields from; rows: the kinds of data it can use;
    models: keys of `train` that name a model, which has to be there; check(job, train): raises ValueError for what these fields,
    of which train has all, can't be together; after(run, job): what is left to do with the model on held-out rows, each time that
    the job is typed, and whether it went well.
    Exits 0 when the run is finished, 2 for a mistake in the request, 1 when training failed.
    """
    stage = Path(build.__code__.co_filename).stem
    started = time.time()
    termination.as_interrupt()
    for key, value in RAY_ENV.items():  # read by ray when it is imported
        os.environ.setdefault(key, value)
    with cli.refusing(f"jobs/{stage}.py"):
        request = cli.parse(stage, config)
        with Preflight(config, request.job) as preflight:
            if check:
                check(request.job, fields.filled(config, request.job.train))
            planned = plan.make(request, rows, models)
            if after:
                planned.check.need_heldout()
            preflight.ask(planned)
    show(planned.lines(), f"{stage}: the plan")
    if request.dry_run:
        print("Dry run: nothing was started.")
        return
    run = Run(planned.job.run)
    with logs.driver(run):
        if planned.finished:
            print(f"{run.path} is already finished ({run.provenance().get('steps')} steps): nothing to resume.")
        else:
            _train(planned, build, config, rows, run, started)
        _afterwards(after, run, planned.job, None if planned.finished else planned)


def _train(planned: plan.Plan, build, config: str, rows: tuple[str, ...], run: Run, started: float) -> None:
    """execute(); what stops it is explained, recorded, and ends the process."""
    stage = planned.job.stage
    try:
        execute(planned, build, config, rows, run, started)
    except KeyboardInterrupt:
        _ended(run, "interrupted")
        word, again = termination.word(), f"python jobs/{stage}.py --resume {shlex.quote(run.path)}"
        print(f"\n{word}. Go on with: {again}", file=sys.stderr)
        sys.exit(termination.code())
    except Exception as e:
        from lib.failure import explain

        why = explain(e, run)
        print(f"\n{why}\nWhat the libraries printed: {run.at('logs')}", file=sys.stderr)
        print(f"Go on with: python jobs/{stage}.py --resume {shlex.quote(run.path)}", file=sys.stderr)
        _ended(run, "failed", failure=why)
        if os.environ.get("SHOESTRING_TRACEBACK"):
            raise
        sys.exit(1)


def _ended(run: Run, status: str, **fields) -> None:
    try:
        provenance.ended(run, status, **fields)
    except Exception as lost:  # the disk or the store may be what failed
        print(f"The run's provenance.json could not be written: {type(lost).__name__}: {lost}", file=sys.stderr)


def _afterwards(after, run: Run, job, new: plan.Plan | None = None) -> None:
    """after(run, job), and before it finish(), where the model is new."""
    again = f"Go on with: python jobs/{job.stage}.py --resume {shlex.quote(run.path)}"
    try:
        if new:
            finish(run, new)
        good = after(run, job) if after else True
    except KeyboardInterrupt:
        print(f"\n{termination.word()}; the model is trained. {again}", file=sys.stderr)
        sys.exit(termination.code())
    except Exception as e:
        from lib.failure import explain

        print(f"\nThe model is trained, but: {explain(e)}", file=sys.stderr)
        print(f"What the libraries printed: {run.at('logs')}\n{again}", file=sys.stderr)
        if os.environ.get("SHOESTRING_TRACEBACK"):
            raise
        sys.exit(1)
    if not good:
        sys.exit(1)


def execute(planned: plan.Plan, build, config: str, rows: tuple[str, ...], run: Run, started: float) -> None:
    """Trains to the planned end, restarting lost workers, and leaves the run finished. Raises what stopped it."""
    job = planned.job
    import yaml

    run.write_text("job.yaml", yaml.safe_dump(job.to_dict(), sort_keys=False, allow_unicode=True))
    named, before = dict(planned.identities), run.provenance().get("model_sha256")
    begun = provenance.origin(
        job.stage, job.to_dict(), job.model.base, named.pop("model.base"), planned.check.summary()
    )
    attempts = provenance.attempted(run, started)
    begun |= {"identities": run.provenance().get("identities", {}) | named, "attempts": attempts}
    provenance.record(run, begun | {"chat_template_sha256": resume.template_digest(planned.template)})
    from lib.progress import Progress

    connect(ahead="lib.controller")
    import ray

    try:
        with Progress(run):
            summary = _trainer(planned, build, config, rows).fit().return_value
    finally:
        ray.shutdown()
    seconds = summary.pop("seconds")
    total = sum(a["seconds"] for a in attempts[:-1]) + time.time() - started
    # What is left is starting and, of a run that didn't go through at once, also work that was lost and starting again.
    rest = "start" if summary["starts"] == len(attempts) == 1 else "restarts"
    seconds[rest] = max(0.0, total - sum(seconds.values()))
    provenance.ended(run, "finished", **summary, seconds=seconds | {"total": sum(seconds.values())})
    if before and before != (now := summary["model_sha256"]):
        print(f"model/ has other bytes than before ({before[:12]}, now {now[:12]}): what was resumed on it is refused.")


RAY_ENV = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it would print worker source code at every datasets.map
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",  # then an elastic group tries with fewer
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the end, or a lost worker, is seen
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # Ray Train's controller does it
    "RAY_prestart_worker_first_driver": "0",  # training workers need an environment of their own anyway
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SCHEDULER_EVENTS": "0",  # "Resized to 0 CPUs." every 3 s while nothing can be rented: lib/waiting.py tells why
    "RAY_worker_niceness": "0",  # Ray's 15 leaves its workers a thirtieth of a core beside any other process
    # What Ray's own actors print at every start and a user can do nothing about.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "PreemptionWatcher|multiple active Ray instances",
}


def connect(ahead: str = "ray") -> None:
    """Joins the cluster of RAY_ADDRESS (which `ray job submit` sets), else starts a Ray for this process alone.

    `ahead` is a module that the caller will need; it is imported while Ray's processes start.
    """
    import importlib
    import threading

    import ray

    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    env = ray_start.interpreter() | {"env_vars": {"PYTHONPATH": path}}
    quiet = {"log_to_driver": True, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        termination.as_interrupt()
    else:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # of nodes that a cluster would take away
        reading = threading.Thread(target=importlib.import_module, args=(ahead,))
        reading.start()
        ray_start.start(include_dashboard=False, runtime_env=env, **quiet)
        termination.as_interrupt()
        reading.join()


def _trainer(planned: plan.Plan, build, config: str, rows: tuple[str, ...]):
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from lib.controller import Trainer
    from lib.hardware import worker_env
    from lib.worker import train_loop

    job, s, on_cluster = planned.job, planned.job.scale, bool(os.environ.get("RAY_ADDRESS"))
    gpu = (planned.device or device.settle(s)).gpu

    run = Run(job.run)
    elastic = (s.min_workers, s.workers) if s.min_workers and s.min_workers < s.workers else s.workers
    resources = {"CPU": s.cpus_per_worker} | ({"GPU": 1} if gpu else {})
    storage = {"storage_path": run.path if not run.remote else run.path.split("://", 1)[1]}
    if run.remote:
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        storage["storage_filesystem"] = PyFileSystem(FSSpecHandler(run.fs))
    loop = {"job": job.to_dict(), "build": build, "config_class": config, "rows": rows, "cluster": on_cluster}
    return Trainer(
        train_loop,
        train_loop_config=loop,
        scaling_config=ScalingConfig(
            num_workers=elastic, use_gpu=gpu, resources_per_worker=resources, elastic_resize_monitor_interval_s=10.0
        ),
        run_config=RunConfig(
            name="ray",
            # A cluster may still be growing, for as long as it takes; a Ray of our own has what it has.
            failure_config=FailureConfig(max_failures=s.max_failures, controller_failure_limit=-1 if on_cluster else 3),
            logging_config=LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": worker_env(s, gpu)},
            **storage,
        ),
        # Weights that FSDP keeps in host memory are clipped there, over gloo.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpu and s.offload else None, timeout_s=600),
    )


def finish(run: Run, planned: plan.Plan) -> None:
    """Prints what the run took and the next commands to type."""
    p, stage = run.provenance(), planned.job.stage
    losses = [r for r in run.metrics() if "loss" in r]
    held = [r for r in run.metrics() if "eval_loss" in r]
    rows = [
        ("steps", str(p["steps"])),
        (
            "loss",
            f"{losses[0]['loss']:.4f} → {losses[-1]['loss']:.4f}" if losses else "not logged (train.logging_steps)",
        ),
        *([("held-out loss", f"{held[-1]['eval_loss']:.4f}")] if held else []),
        ("tokens", f"{p['tokens']:,}" + (f" at {rate:,.0f}/s" if (rate := p["tokens_per_second"]) else "")),
        ("time", ", ".join(f"{k} {v:.0f} s" for k, v in p["seconds"].items())),
        ("memory", f"{p['peak_memory_bytes'] / 2**30:.1f} GiB at the peak of a worker"),
        ("model", run.at("model")),
    ]
    show(rows, f"{stage}: finished")
    if planned.job.eval.tasks:
        _evaluate(run, planned.job)
    print("Next:")
    for command in _next(run, planned.job):
        print(f"  {command}")


def _next(run: Run, job) -> list[str]:
    path, base = shlex.quote(run.path), shlex.quote(job.model.base)
    if job.stage == "reward":
        return [f"python jobs/eval.py --reward {path} --tasks preference_accuracy {_data_options(job)}"]
    task = "demo" if job.data.source == "demo" else f"perplexity {_data_options(job)}"
    commands = [f"python jobs/eval.py --runs.base {base} --runs.{job.stage} {path} --tasks {task}"]
    if job.stage == "sft":
        return commands + [
            f"python jobs/{s}.py --config configs/{s}.yaml --model.base {path}" for s in ("reward", "dpo")
        ]
    if not run.remote:
        code = f"from transformers import pipeline; print(pipeline('text-generation', '{run.path}/model')('Hello'))"
        commands.append(f'python -c "{code}"')
    return commands


def _data_options(job) -> str:
    """The job's data section as options, so that another command reads the same rows."""
    default, options = type(job.data)(), []
    for name, value in vars(job.data).items():
        if name == "source" or (name not in ("limit", "heldout_limit") and value != getattr(default, name)):
            options += [f"--data.{name}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(options)


def _evaluate(run: Run, job) -> None:
    """Scores the finished run beside its base on `eval.tasks`; the report goes into the run."""
    from lib.evals.evaluate import evaluate
    from lib.evals.job import after
    from lib.evals.render import terminal

    command = _next(run, job)[0]
    try:
        terminal(evaluate(after(job), command), run.at("reports"))
    except (ValueError, RuntimeError) as e:
        print(f"\nThe model is trained, but its evaluation failed: {e}\nTry: {command}", file=sys.stderr)
        sys.exit(1)


def show(rows: list[tuple[str, str]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(label, text)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False).print(table)
