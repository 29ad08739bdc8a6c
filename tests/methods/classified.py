"""Trains a tiny encoder to classify or to rate, as a worker does, in this process or, for three steps, as one of several.

RANK=0 WORLD_SIZE=2 … python -m tests.methods.classified FOLDER BASE ROWS TASK …     prints {task: [losses …, held-out loss]}
"""

import json
import sys
from pathlib import Path

from tests.conftest import WORDS
from tests.methods import as_worker
from tests.methods.as_worker import losses

NAMES = ["no", "perhaps", "yes"]


def rows(folder: Path) -> dict[str, str]:
    """Writes 25 rows of different lengths of each kind. Returns {task: file}."""
    words = [WORDS[n % len(WORDS)] for n in range(60)]
    said = [" ".join(words[n : n + 2 + n % 7]) + f" {n}" for n in range(25)]
    made = {
        "classes": [{"text": text, "label": n % 3} for n, text in enumerate(said)],
        "pairs": [{"premise": t, "hypothesis": t[::-1][: 3 + n], "label": NAMES[n % 3]} for n, t in enumerate(said)],
        "scores": [{"sentence1": t, "sentence2": t[n:] + "!", "score": n % 6} for n, t in enumerate(said)],
    }
    for name, of in made.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of))
    return {name: str(folder / f"{name}.jsonl") for name in made}


def options(model: str, source: str, folder: str, micro: int = 4, **train) -> list[str]:
    keys = {"max_steps": 6, "logging_steps": 1, "learning_rate": 3e-3, "seed": 0, "max_length": 64, "dropout": 0.1}
    given = {
        "run": f"{folder}/run", "model.base": model, "data.source": source, "data.heldout_fraction": 0.2, "scale.global_batch": 8,
        "scale.micro_batch": micro, "scale.precision": "fp32",
    } | {f"train.{k}": v for k, v in (keys | train).items()}  # fmt: skip
    return [text for key, value in given.items() for text in (f"--{key}", str(value))]


def built(model: str, source: str, folder: str, *more: str, workers: int = 1, micro: int = 4, **train):
    """Returns the trainer of a worker. A step has 8 rows; an epoch has 3 steps. more: options."""
    return as_worker.built("classify", [*options(model, source, folder, micro, **train), *more], folder, workers)


if __name__ == "__main__":
    where, encoder, folder, *names = sys.argv[1:]
    files, count = rows(Path(folder)), as_worker.workers()
    print(json.dumps({n: losses(built(encoder, files[n], f"{where}/{n}", workers=count, max_steps=3)) for n in names}))
