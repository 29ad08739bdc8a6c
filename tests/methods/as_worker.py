"""Trains a stage as a worker does: in this process, or as one of two."""

import json
import os
import subprocess

from lib.methods import heldout
from lib.stage import epochs
from lib.stage.training_arguments import arguments
from lib.stage.worker import save_work
from tests import stages, warm
from tests.conftest import PATIENCE, REPO, free_port


def built(stage: str, argv: list[str], folder: str, workers: int = 1):
    """Returns the trainer of a worker, of a job with these options."""
    job = stages.planned(stage, argv).job
    args, _ = arguments(job, stages.stage(stage).config, workers, folder)
    made = stages.built(job, args)
    save_work(made, "ddp")
    epochs.fill(made, job.scale.global_batch)
    heldout.Heldout(made)
    return made


def losses(trainer) -> list[float]:
    """Trains, and returns the loss of each step and the held-out loss."""
    trainer.train()
    steps = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return [*steps, trainer.evaluate()["eval_loss"]]


def workers() -> int:
    """Returns the number of workers that this process is one of."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Two:
    """Two processes that run `python -m module *arguments` as the two workers of a job."""

    def __init__(self, module: str, *arguments: str, cache: str):
        port, self.processes = str(free_port()), []
        for rank in range(2):
            env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"HF_HOME": cache}
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            command = [warm.python(), "-m", module, *arguments]
            self.processes.append(subprocess.Popen(command, cwd=REPO, env=env, stdout=subprocess.PIPE, text=True))

    def result(self) -> dict:
        """Waits for them, and returns the JSON that the first printed last."""
        said = [p.communicate(timeout=PATIENCE)[0] for p in self.processes]
        assert not any(p.returncode for p in self.processes)
        return json.loads(said[0].splitlines()[-1])
