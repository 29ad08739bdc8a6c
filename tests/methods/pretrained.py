"""Trains a tiny model by an objective of jobs/pretrain.py, as a worker does, in this process or, for three steps, as one of several.

RANK=0 WORLD_SIZE=2 … python -m tests.methods.pretrained FOLDER TEXTS OBJECTIVE …     prints {objective: [losses …, held-out loss]}
"""

import json
import sys
from pathlib import Path

from tests.conftest import WORDS
from tests.methods import as_worker
from tests.methods.as_worker import losses

LENGTH = 12
"""Tokens of text in a block."""


def texts(folder: Path) -> str:
    """Writes a file of short texts, one a line, that fill 22 blocks. Returns the file."""
    said = [f"the {a} {b} is near the {c}." for a, b, c in zip(WORDS * 2, WORDS[5:] * 3, WORDS[7:] * 4, strict=False)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in said))
    return str(folder / "texts.jsonl")


def built(objective: str, texts: str, folder: str, *, workers: int = 1, micro: int = 4, **train):
    """Returns the trainer of a worker. A step has 8 blocks; an epoch of the 22 blocks has 3 steps."""
    return as_worker.built("pretrain", options(objective, texts, folder, micro, **train), folder, workers)


def options(objective: str, texts: str, folder: str, micro: int = 4, **train) -> list[str]:
    keys = {"max_steps": 6, "logging_steps": 1, "learning_rate": 3e-3, "seed": 0, "max_length": LENGTH} | train
    given = {
        "run": f"{folder}/run", "model.base": "none", "model.size": "4m", "model.vocab_size": 512, "data.source": texts,
        "data.heldout_fraction": 0.2, "scale.global_batch": 8, "scale.micro_batch": micro, "scale.precision": "fp32",
        "train.objective": objective,
    } | {f"train.{k}": v for k, v in keys.items()}  # fmt: skip
    return [text for key, value in given.items() for text in (f"--{key}", str(value))]


if __name__ == "__main__":
    where, texts_file, *names = sys.argv[1:]
    count = as_worker.workers()
    of = {name: losses(built(name, texts_file, f"{where}/{name}", workers=count, max_steps=3)) for name in names}
    print(json.dumps(of))
