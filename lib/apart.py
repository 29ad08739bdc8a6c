"""Work by a process of its own, with a GPU where the cluster has one: its memory and its threads are nobody else's."""

from __future__ import annotations

from lib import device, hardware, logs, waiting
from lib.config import Scale
from lib.run import Run


def apart(run: Run, f, *args):
    """f(*args) as a Ray task for `run`, in whose logs/ is what it prints; Ray must be connected. Raises what it raised."""
    import ray

    gpu = int(hardware.gpus() > 0)
    env = hardware.worker_env(Scale(), bool(gpu))
    # max_calls: the process ends with the task, so that the next one's memory is its own.
    task = ray.remote(num_cpus=1, num_gpus=gpu, max_calls=1, max_retries=1, runtime_env={"env_vars": env})(logged)
    with waiting.of_cluster(1, {"CPU": 1, "GPU": gpu}):
        return ray.get(task.remote(run.path, f, *args))


def logged(run: str, f, *args):
    """f(*args), what it prints kept in the run's logs/."""
    device.of_worker()  # stops here where the GPU can't be used
    with logs.kept(Run(run), f.__name__.strip("_")):
        return f(*args)
