"""Runs a search on Ray Tune, which starts the trials' processes."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import yaml
from filelock import FileLock, Timeout
from ray import tune

from lib.run import Run
from tune.journal import Journal
from tune.plan import Plan
from tune.progress import Progress
from tune.search import Scheduler, Search
from tune.stopping import Stopping

DRIVES = {"memory": 2.0**20}
"""Resources of a trial's process that only starts workers: Ray Tune needs some, and all cores are the workers'."""


def run(planned: Plan) -> tuple[Journal, str]:
    """Runs trials until the budget or the space is used up. Returns (the journal, why the search ended).

    Ray must be connected. Raises KeyboardInterrupt at Ctrl-C; the same command then goes on. Raises ValueError if another process runs
    this search.
    """
    with _claimed(Run(planned.settings.run)):
        return _run(planned)


@contextmanager
def _claimed(run: Run) -> Iterator[None]:
    """Holds the lock on a local search's directory. Raises ValueError if another process does."""
    if run.remote:  # an object store has no locks
        yield
        return
    Path(run.path).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run.at(".lock"), timeout=0):
            yield
    except Timeout:
        raise ValueError(f"run: another process is searching in {run.path}. Wait for it or end it.") from None


def _run(planned: Plan) -> tuple[Journal, str]:
    journal = Journal(Run(planned.settings.run))
    kept = asdict(planned.settings) | {"job_sha256": planned.identity()}
    journal.run.write_text("search.yaml", yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # at each lost process it prints a traceback
    os.environ |= {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        # Trials that wait for a node at the same time, so that a cluster starts all the nodes at once.
        "TUNE_MAX_PENDING_TRIALS_PG": str(planned.settings.concurrent or 1),
    }
    stopping = Stopping(planned.settings, planned.mode)
    for row in journal.events:
        stopping.event(row)
    journal.add("start")
    with Progress(planned, journal) as show:
        search = Search(planned, journal, show)
        _fit(_tuner(planned, search, Scheduler(search, stopping)))
    return journal, search.stopped or search.spent() or search.over


def _tuner(planned: Plan, search: Search, scheduler: Scheduler) -> tune.Tuner:
    run, scale = Run(planned.settings.run), planned.base.scale
    each: dict[str, float] = {"CPU": scale.cpus_per_worker, **({"GPU": 1} if planned.gpu else {})}
    several = scale.workers > 1
    storage: dict[str, Any] = {"storage_path": run.at("ray") if not run.remote else run.at("ray").split("://", 1)[1]}
    if run.remote:
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        storage["storage_filesystem"] = PyFileSystem(FSSpecHandler(run.fs))
    return tune.Tuner(
        tune.with_resources(_trial, DRIVES if several else each),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=concurrent(planned, each),
            reuse_actors=not several,  # workers of a group end with the trial's process
            trial_dirname_creator=lambda t: f"{t.config['number']:04d}-{t.trial_id}",
        ),
        run_config=tune.RunConfig(name="tune", verbose=0, **storage),
    )


def _trial(config: dict[str, Any]) -> None:
    """What Tune runs. Only the trials' processes import torch."""
    from tune.trial import trial

    trial(config)


def concurrent(planned: Plan, each: dict[str, float]) -> int:
    """Returns how many trials run at the same time: as given, or as many as fit into the cluster as it is."""
    if planned.settings.concurrent:
        return planned.settings.concurrent
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    workers = planned.base.scale.workers
    return max(1, math.floor(min(have.get(k, 0.0) / (n * workers) for k, n in each.items())))


def _fit(tuner: tune.Tuner) -> None:
    """Calls tuner.fit() in a thread, where Ray installs no SIGINT handler: Ctrl-C raises KeyboardInterrupt here at once."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            tuner.fit()
        except BaseException as e:  # raised again below, in the waiting thread
            failed.append(e)

    thread = threading.Thread(target=work, daemon=True, name="ray.tune")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
