"""The program behind every file in jobs/: parse, validate, plan, connect to Ray, run, record the outcome, print the next commands."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lib.run import Run
from lib.runtime import logs, provenance, ray_session, refusing, termination
from lib.runtime.console import show
from lib.stage import closing, plan, training_cli
from lib.stage.preflight import Preflight
from lib.stage.stage import Stage, WorkStage


def main(stage: Stage | WorkStage, argv: list[str] | None = None) -> None:
    """Runs a stage from its command line (argv; None: sys.argv) and exits the process on failure.

    Exit codes: 1: the work failed, or a gate on its result did; 2: the request is invalid; 130 or 143: interrupted by SIGINT
    or SIGTERM.
    """
    argv = sys.argv[1:] if argv is None else argv
    ray_session.prepare()
    if code := _train(stage, argv) if isinstance(stage, Stage) else _work(stage, argv):
        sys.exit(code)


def _train(stage: Stage, argv: list[str]) -> int:
    began = time.time()
    with refusing.refusing(f"jobs/{stage.name}.py"):
        request = training_cli.parse(stage, argv)
        with Preflight(stage.config, request.job) as preflight:
            planned = plan.make(request, stage)
            preflight.ask(planned)
    show(planned.lines(), f"{stage.name}: the plan")
    if request.dry_run:
        print("Dry run: nothing was started.")
        return 0
    run, job = Run(planned.job.run), planned.job
    again = f"Continue with: python jobs/{stage.name}.py --resume {shlex.quote(run.path)}"
    with logs.driver(run), ending(run, again, trains=True):
        if planned.finished:
            print(f"{run.path} is already finished ({run.provenance().get('steps')} steps): nothing to resume.")
            return _code(not stage.after or stage.after(run, job))
        with ray_session.connected(ahead="lib.stage.training"):
            from lib.stage.training import train

            train(planned, stage, began)
            return _code(closing.finish(run, job) and (not stage.after or stage.after(run, job)))


def _code(good: bool) -> int:
    return 0 if good else 1


def _work(stage: WorkStage, argv: list[str]) -> int:
    program = stage.program or f"python jobs/{stage.name}.py"
    with refusing.refusing(stage.program or f"jobs/{stage.name}.py"):
        request = stage.parse(argv)
        planned = stage.plan(request)
    show(planned.lines(), f"{stage.name}: the plan")
    if request.dry_run:
        print("Dry run: nothing was started.")
        return 0
    run, command = Run(planned.job.run), f"{program} {shlex.join(argv)}"
    if planned.finished:
        print(f"{run.path} is already finished: nothing to resume.")
        return 0
    resume = f"{program} --resume {shlex.quote(run.path)}"
    again = f"Continue with: {resume}" if stage.resumes else f"Rerun: {command}"
    env = stage.environment(planned) if stage.environment else None
    with logs.driver(run), ending(run, again), ray_session.connected(env=env):
        return _code(stage.work(planned, command))


@contextmanager
def ending(run: Run, again: str, trains: bool = False) -> Iterator[None]:
    """Context manager that records an error or interruption in the run, explains it on standard error, and exits the process.

    again: the sentence that shows how to continue. trains: the run has checkpoints, and the explanation names the last one.
    """
    try:
        yield
    except KeyboardInterrupt:
        made = _record(run, "interrupted")
        print(f"\n{termination.word()}{'; the model is finished' if made else ''}. {again}", file=sys.stderr)
        sys.exit(termination.code())
    except Exception as e:
        from lib.runtime.failure import explain

        why = explain(e, run if trains and not _finished(run) else None)
        made = _record(run, "failed", failure=why)
        print(f"\n{'The model is finished, but: ' if made else ''}{why}", file=sys.stderr)
        print(f"Logs: {run.at('logs')}\n{again}", file=sys.stderr)
        if os.environ.get("SHOESTRING_TRACEBACK"):
            raise
        sys.exit(1)


def _record(run: Run, status: str, **fields: str) -> bool:
    """Records how the run ended, unless train() already has. Returns whether the run is finished."""
    if _status(run) == "running":
        provenance.ended_or_said(run, status, **fields)
    return _finished(run)


def _finished(run: Run) -> bool:
    return _status(run) == "finished"


def _status(run: Run) -> str | None:
    try:
        return run.provenance().get("status") if run.is_run() else None
    except Exception:  # the run can't be read, and that is the very error being explained
        return None
