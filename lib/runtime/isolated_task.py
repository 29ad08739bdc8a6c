"""Runs a function in a separate Ray process, with a GPU if the cluster has one, so that it shares no memory or threads."""

from __future__ import annotations

from lib.config.job import Scale
from lib.run import Run
from lib.runtime import device, hardware, logs, waiting


def apart(run: Run, f, *args):
    """Returns f(*args), run as a Ray task whose output goes to the run's logs/. Ray must be connected. Reraises the errors of f."""
    import ray

    gpu = int(hardware.gpus() > 0)
    env = hardware.worker_env(Scale(), bool(gpu))
    # max_calls=1: the process ends with the task, so that the next task starts with fresh memory.
    task = ray.remote(num_cpus=1, num_gpus=gpu, max_calls=1, max_retries=1, runtime_env={"env_vars": env})(logged)
    with waiting.of_cluster(1, {"CPU": 1, "GPU": gpu}):
        return ray.get(task.remote(run.path, f, *args))


def logged(run: str, f, *args):
    """Returns f(*args), with its output redirected to the run's logs/."""
    device.of_worker()  # raises StopTraining if Ray granted a GPU that torch can't use
    with logs.kept(Run(run), f.__name__.strip("_")):
        return f(*args)
