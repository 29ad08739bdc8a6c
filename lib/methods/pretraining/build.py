"""From a job's texts to its trainer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from lib.config.job import Job
from lib.data import Loaded
from lib.methods.pretraining.blocks import Blocks, Tokens
from lib.methods.pretraining.config import PretrainConfig
from lib.methods.pretraining.trainer import OBJECTIVES, PretrainTrainer
from lib.models import load, locate
from lib.rendering.sequences import end
from lib.runtime import logs

TOGETHER = 1000
"""Texts that are tokenised at a time."""


def trainer(job: Job, args: PretrainConfig, inputs: Loaded) -> PretrainTrainer:
    """Raises ValueError if the texts don't fill a block."""
    tokenizer = load.tokenizer(job.model)
    objective = OBJECTIVES[args.objective](args, tokenizer)
    blocks = {}
    for side, rows in (("train", inputs.train), ("heldout", inputs.heldout)):
        if rows is None:
            continue
        blocks[side] = Blocks(Tokens(tokenised(tokenizer, rows, args)), args.max_length, args.seed, side)
        if not len(blocks[side]):
            what = "data.source" if side == "train" else "data.heldout"
            raise ValueError(
                f"{what}: its {side} rows have {blocks[side].left_out:,} tokens, less than a block of train.max_length {args.max_length:,}."
            )
        if blocks[side].left_out and args.process_index == 0:
            logs.say(
                f"{side}: {len(blocks[side]):,} blocks; the last {blocks[side].left_out:,} tokens fill none and are left out"
            )
    torch.manual_seed(args.seed)  # some objectives add a new head to the base
    model = objective.model(locate.path(job.model.base), **args.model_init_kwargs or {})
    if job.model.adapter != "none":
        from peft import get_peft_model

        model = get_peft_model(model, load.peft_config(job.model.adapter, job.model.peft, job.makes))
    return PretrainTrainer(
        objective, model=model, args=args, train_dataset=blocks["train"], eval_dataset=blocks.get("heldout"),
        processing_class=tokenizer,
    )  # fmt: skip


def tokenised(tokenizer: Any, rows: Any, args: PretrainConfig) -> Any:
    """Returns each text's tokens with the end token, and the number of each token's word (−1: the end token), in a file beside the rows.

    The first worker of a node writes the file, and the others wait for it.
    """
    from datasets import Features, List, Value

    last = end(tokenizer)

    def work(batch: dict) -> dict:
        found = tokenizer(batch["text"], add_special_tokens=False)
        words = ([-1 if w is None else w for w in found.word_ids(n)] for n in range(len(batch["text"])))
        return {"ids": [[*ids, last] for ids in found["input_ids"]], "words": [[*w, -1] for w in words]}

    [source] = rows.cache_files
    made_of = f"{tokenizer.backend_tokenizer.to_str()} {last} {Path(__file__).read_text()}"
    file = f"{source['filename']}.{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.tokens"
    features = Features({name: List(Value("int32")) for name in ("ids", "words")})
    with args.main_process_first(desc="tokenising"):
        return rows.map(
            work,
            batched=True,
            batch_size=TOGETHER,
            remove_columns=rows.column_names,
            features=features,
            cache_file_name=file,
        )
