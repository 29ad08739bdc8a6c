"""From a job's rows to its trainer."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch.utils.data import Dataset
from transformers import AutoConfig

from lib.config.job import Job
from lib.data import Loaded
from lib.methods.dropout import RATES, key
from lib.methods.embedding import mining
from lib.methods.embedding.check import fits
from lib.methods.embedding.config import EmbedConfig
from lib.methods.embedding.losses import KEYS
from lib.methods.embedding.trainer import EmbedTrainer
from lib.models import load, locate, pooling
from lib.models.window import positions
from lib.runtime import logs

TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
"""What the model reads, as sentence-transformers describes it."""


class Rows(Dataset):
    """The texts of each row, [anchor, positive, negative, …], with the number of the row, counted over all epochs."""

    by_epoch = True
    """As lib/stage/epochs.py reads it."""

    def __init__(self, rows: Any, negatives: int):
        self.rows, self.negatives = rows, negatives

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, list[str]]:
        row = self.rows[index % len(self.rows)]
        if "text" in row:
            return index, [row["text"]] * 2
        return index, [row["anchor"], row["positive"], *row["negatives"][: self.negatives]]


class Collator:
    """Makes a batch: {"features": [features of each column], "rows": (B,), and the number of tokens as Trainer counts it}."""

    def __init__(self, tokenizer: Any, args: EmbedConfig):
        self.tokenizer, self.length, self.seed = tokenizer, args.max_length, args.seed

    def __call__(self, rows: list[tuple[int, list[str]]]) -> dict:
        numbers, features = [index for index, _ in rows], []
        for n, texts in enumerate(zip(*(texts for _, texts in rows), strict=True)):
            read = self.tokenizer(
                [*texts],
                padding=True,
                padding_side="right",
                truncation=True,
                max_length=self.length,
                return_tensors="pt",
            )
            keys = torch.tensor([key(self.seed, index, n) for index in numbers])
            features.append({**read, KEYS: keys})
        tokens = torch.stack([column["attention_mask"].sum() for column in features])
        return {"features": features, "rows": torch.tensor(numbers), "input_ids": tokens, "attention_mask": tokens}


def trainer(job: Job, args: EmbedConfig, inputs: Loaded) -> EmbedTrainer:
    """Raises ValueError if the rows aren't what train.loss compares, or the base has no vectors to pool."""
    fits(args, inputs.check)
    tokenizer = load.tokenizer(job.model)
    low, high = inputs.check.negatives or (0, 0)
    if args.process_index == 0:
        _say_repeats(inputs)
        if low < high:
            logs.say(f"rows have {low:,} to {high:,} negatives: the first {low:,} of each are used")
    if inputs.heldout and inputs.kind == "contrastive" and min(map(len, inputs.heldout["negatives"])) < low:
        raise ValueError(
            f"data.heldout: some rows have fewer than {low:,} negatives, which all training rows have. Add them."
        )
    train, heldout, fewest = inputs.train, inputs.heldout, low
    if args.hard_negatives is not None:
        train, heldout = mining.mined(job, args, inputs)
        low, fewest = args.num_negatives, args.num_negatives if args.loss == "triplet" else 0
    rows = [train and Rows(train, low), heldout and Rows(heldout, fewest)]
    return EmbedTrainer(
        model=model(job, args, tokenizer), args=args, train_dataset=rows[0], eval_dataset=rows[1], processing_class=tokenizer,
        data_collator=Collator(tokenizer, args),
    )  # fmt: skip


def model(job: Job, args: EmbedConfig, tokenizer: Any) -> SentenceTransformer:
    """Returns transformer, pooling and scaling to length 1. Raises ValueError, naming the key."""
    where, init = locate.path(job.model.base), dict(args.model_init_kwargs or {})
    config = AutoConfig.from_pretrained(where, revision=job.model.revision)
    drop = {name: rate for name in RATES if isinstance(rate := getattr(config, name, None), int | float)}
    wanted = 0.1 if args.dropout is None and args.loss == "simcse" else args.dropout
    if wanted is not None:
        drop = dict.fromkeys(drop, wanted)
        if wanted and not drop:
            raise ValueError(f"train.dropout: a {config.model_type} has none. Use another base.")
    if any(drop.values()) and init["attn_implementation"] != "eager":
        if job.model.attn_implementation:
            raise ValueError(
                f"model.attn_implementation: the dropout of {job.model.attn_implementation} changes with scale. Use eager, or train.dropout: 0."
            )
        init["attn_implementation"] = "eager"
    tokenizer.chat_template = None  # with one, sentence-transformers would embed a text as a user's message
    network = Transformer(
        where, model_kwargs=init, config_kwargs=drop, modality_config=TEXT, module_output_name="token_embeddings"
    )
    if getattr(network.model, "pooler", None) is not None:
        network.model.pooler = None  # BERT's second output is in no vector, and DDP would wait for its gradients
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions(config) or tokenizer.model_max_length)
    network.processor = tokenizer  # with the padding token that the base may lack
    width = network.get_embedding_dimension()
    if too_long := [n for n in args.matryoshka_dims or () if n > width]:
        raise ValueError(f"train.matryoshka_dims: vectors have {width} numbers, fewer than {too_long[0]}.")
    described = network.model.config
    # vLLM's name. The lengths of the base don't hold after training without them.
    if args.matryoshka_dims or getattr(described, "matryoshka_dimensions", None):
        described.matryoshka_dimensions = sorted(args.matryoshka_dims or (), reverse=True)
    mode = args.pooling or pooling.of(where) or "mean"
    return SentenceTransformer(modules=[network, Pooling(width, pooling.NAMES[mode]), Normalize()], device="cpu")


def _say_repeats(inputs: Loaded) -> None:
    """Prints how many rows share a text with another row: if both are in a step, the loss takes that text for a negative."""
    if inputs.kind == "text":
        shared = _shared(inputs.train["text"])
    else:
        both = zip(_shared(inputs.train["anchor"]), _shared(inputs.train["positive"]), strict=True)
        shared = [a or b for a, b in both]
    if n := sum(shared):
        logs.say(
            f"{n:,} of {len(shared):,} rows share a text with another row; in one step, each is taken for the other's negative"
        )


def _shared(texts: Any) -> list[bool]:
    hashes = [hash(text) for text in texts]
    counts = Counter(hashes)
    return [counts[h] > 1 for h in hashes]
