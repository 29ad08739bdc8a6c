"""Trains a tiny model by PPO as a worker does, in this process or as one of two.

RANK=0 WORLD_SIZE=2 … python -m tests.methods.valued FOLDER BASE     prints {"losses": […], "rewards": […], "kl": […], "explained": […]}
"""

import json
import sys

from tests.methods import as_worker
from tests.methods.rewarded import logged


def options(model: str, folder: str, micro: int = 4, **train) -> list[str]:
    """A rollout has 4 answers, and two updates learn from it; an epoch of the 8 prompts has 2 rollouts."""
    keys = {
        "max_steps": 8, "num_iterations": 2, "logging_steps": 1, "learning_rate": 1e-2, "seed": 0, "max_completion_length": 6,
        "save_steps": 2, "kl_coef": 0.1,
    } | train  # fmt: skip
    given = {
        "run": f"{folder}/run", "model.base": model, "data.source": "demo", "data.limit": 8, "data.heldout_limit": 5,
        "rewards.reference.chrf": 0.1, "rewards.length": -0.5, "scale.global_batch": 4, "scale.micro_batch": micro, "scale.precision": "fp32",
    } | {f"train.{k}": v for k, v in keys.items()}  # fmt: skip
    return [text for key, value in given.items() for text in (f"--{key}", str(value))]


def built(model: str, folder: str, *more: str, workers: int = 1, micro: int = 4, **train):
    return as_worker.built("ppo", [*options(model, folder, micro, **train), *more], folder, workers)


def found(trainer) -> dict:
    keys = {"losses": "loss", "rewards": "reward", "kl": "kl_sequence", "explained": "explained_variance"}
    return {name: logged(trainer, key) for name, key in keys.items()}


if __name__ == "__main__":
    folder, base = sys.argv[1:]
    made = built(base, folder, workers=as_worker.workers(), max_steps=4)
    made.train()
    print(json.dumps(found(made)))
