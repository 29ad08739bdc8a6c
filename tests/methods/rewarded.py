"""Trains a tiny model by GRPO as a worker does, in this process or as one of two.

RANK=0 WORLD_SIZE=2 … python -m tests.methods.rewarded FOLDER BASE     prints {"losses": […], "rewards": […], "heldout": {…}}
"""

import json
import sys

from tests.conftest import WORDS
from tests.methods import as_worker


def base(tiny_model: str, folder: str) -> str:
    """Writes `tiny_model` after 40 steps on answers of one to five words, so that it ends some answers early. Returns the folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    said = [" ".join(WORDS[(n * k) % len(WORDS)] for k in range(1 + n % 5)) for n in range(16)]
    turns = [
        [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": text}] for n, text in enumerate(said)
    ]
    batch = tokenizer(
        [tokenizer.apply_chat_template(t, tokenize=False) for t in turns],
        return_tensors="pt", padding=True, add_special_tokens=False,
    )  # fmt: skip
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def options(model: str, folder: str, micro: int = 4, **train) -> list[str]:
    """A step has 2 prompts of 4 answers each; an epoch of the 6 prompts has 3 steps."""
    keys = {
        "max_steps": 6, "logging_steps": 1, "learning_rate": 1e-2, "seed": 0, "num_generations": 4, "max_completion_length": 6,
        "gradient_checkpointing": "false",
    } | train  # fmt: skip
    given = {
        "run": f"{folder}/run", "model.base": model, "data.source": "demo", "data.limit": 6, "data.heldout_limit": 5,
        "rewards.reference.chrf": 0.1, "rewards.length": -0.5, "scale.global_batch": 8, "scale.micro_batch": micro, "scale.precision": "fp32",
    } | {f"train.{k}": v for k, v in keys.items()}  # fmt: skip
    return [text for key, value in given.items() for text in (f"--{key}", str(value))]


def built(model: str, folder: str, *more: str, workers: int = 1, micro: int = 4, **train):
    return as_worker.built("grpo", [*options(model, folder, micro, **train), *more], folder, workers)


def logged(trainer, key: str) -> list[float]:
    return [row[key] for row in trainer.state.log_history if key in row]


if __name__ == "__main__":
    folder, base = sys.argv[1:]
    made = built(base, folder, workers=as_worker.workers(), max_steps=3)
    made.train()
    print(json.dumps({"losses": logged(made, "loss"), "rewards": logged(made, "reward"), "heldout": made.evaluate()}))
