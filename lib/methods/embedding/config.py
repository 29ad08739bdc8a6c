"""Settings of contrastive training: the keys of `train:` in jobs/embed.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments


@dataclass
class EmbedConfig(TrainingArguments):
    """Fields with init=False can't be set in `train`."""

    whole_steps = True
    """The rows of a step are compared with each other: lib/stage/training_arguments.py gives a worker all of its rows at once."""

    remove_unused_columns: bool = field(default=False, init=False)
    label_smoothing_factor: float = field(default=0.0, init=False)
    model_init_kwargs: dict | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained, under their own names."}
    )
    loss: Literal["mnrl", "triplet", "simcse"] = field(
        default="mnrl",
        metadata={
            "help": "mnrl: multiple negatives ranking (InfoNCE), the other rows' passages are negatives. triplet: the positive is closer than "
            "the row's own negatives, by a margin. simcse: plain texts, each is its own positive with another dropout."
        },
    )
    temperature: float = field(
        default=0.05, metadata={"help": "mnrl, simcse: τ, by which cosine similarities are divided."}
    )
    triplet_margin: float = field(default=0.2, metadata={"help": "triplet: the margin, in cosine similarity."})
    hard_negatives: str | None = field(
        default=None,
        metadata={
            "help": "An embedding model (run, folder or hub name) that finds negatives for pairs before training: the passages nearest to each "
            "anchor (lib/methods/embedding/mining.py). None: the negatives in the rows."
        },
    )
    num_negatives: int = field(default=3, metadata={"help": "hard_negatives: negatives of a row."})
    relative_margin: float | None = field(
        default=0.05,
        metadata={
            "help": "hard_negatives: a passage whose similarity is above (1 - margin) times the positive's may be right too and is left out "
            "(Moreira et al. 2024). None: none is left out."
        },
    )
    matryoshka_dims: list[int] | None = field(
        default=None,
        metadata={
            "help": "Lengths to which a vector may be shortened, such as [384, 128, 32]: the loss is the sum over them (Kusupati et al. 2022). "
            "None: the whole vector only."
        },
    )
    pooling: Literal["mean", "last", "cls"] | None = field(
        default=None,
        metadata={
            "help": "A text's vector: the mean of its tokens', the last token's, or the first token's. None: the base's own way, else mean."
        },
    )
    dropout: float | None = field(
        default=None, metadata={"help": "Dropout of the base. None: its own, but 0.1 for simcse (Gao et al. 2021)."}
    )
    max_length: int = field(
        default=128,
        metadata={"help": "Tokens to which texts are cut in training. model/ reads as many as the base does."},
    )
