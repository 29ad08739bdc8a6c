"""Trains a tiny encoder by a loss of jobs/embed.py, as a worker does, in this process or, for three steps, as one of several.

RANK=0 WORLD_SIZE=2 … python -m tests.methods.embedded FOLDER BASE ROWS LOSS …     prints {loss: [losses …, held-out loss]}
"""

import json
import sys
from pathlib import Path

from tests.conftest import WORDS
from tests.methods import as_worker
from tests.methods.as_worker import losses


def base(tiny_model: str, folder: Path) -> str:
    """Writes a BERT of two layers with dropout, and the tokenizer of `tiny_model`. Returns the folder."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    BertModel(BertConfig(vocab_size=1024, max_position_embeddings=64, **shape, **rates)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return str(folder)


def rows(folder: Path) -> dict[str, str]:
    """Writes 25 rows with two negatives and as many texts, of different lengths. Returns {loss: file}."""
    words = [WORDS[n % len(WORDS)] for n in range(60)]
    said = [" ".join(words[n : n + 2 + n % 7]) + f" {n}" for n in range(25)]
    contrastive = [
        {"anchor": text, "positive": f"{n}: {text[::-1]}", "negatives": [f"not {text}", f"{n + 1}"]}
        for n, text in enumerate(said)
    ]
    for name, made in (("contrastive", contrastive), ("text", [{"text": text} for text in said])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    pairs = str(folder / "contrastive.jsonl")
    return {"mnrl": pairs, "triplet": pairs, "simcse": str(folder / "text.jsonl")}


def pairs(folder: Path) -> str:
    """Writes the 25 rows without their negatives, two of which share an anchor, and returns the file."""
    made = [json.loads(line) for line in Path(rows(folder)["mnrl"]).read_text().splitlines()]
    for row in made:
        del row["negatives"]
    made[1]["anchor"] = made[0]["anchor"]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(folder / "pairs.jsonl")


def options(loss: str, model: str, source: str, folder: str, micro: int = 4, **train) -> list[str]:
    keys = {"max_steps": 6, "logging_steps": 1, "learning_rate": 3e-3, "seed": 0, "max_length": 48} | train
    if loss == "mined":
        loss, keys = "mnrl", keys | {"hard_negatives": model, "num_negatives": 2, "relative_margin": 0.0}
    given = {
        "run": f"{folder}/run", "model.base": model, "data.source": source, "data.heldout_fraction": 0.2, "scale.global_batch": 8,
        "scale.micro_batch": micro, "scale.precision": "fp32", "train.loss": loss,
    } | {f"train.{k}": v for k, v in keys.items()}  # fmt: skip
    return [text for key, value in given.items() for text in (f"--{key}", str(value))]


def built(loss: str, model: str, source: str, folder: str, *, workers: int = 1, micro: int = 4, **train):
    """Returns the trainer of a worker. A step has 8 rows; an epoch has 3 steps."""
    return as_worker.built("embed", options(loss, model, source, folder, micro, **train), folder, workers)


if __name__ == "__main__":
    where, encoder, folder, *names = sys.argv[1:]
    files, count = rows(Path(folder)) | {"mined": pairs(Path(folder))}, as_worker.workers()
    of = {n: losses(built(n, encoder, files[n], f"{where}/{n}", workers=count, max_steps=3)) for n in names}
    print(json.dumps(of))
