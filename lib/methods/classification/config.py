"""Settings of classification and regression: the keys of `train:` in jobs/classify.py."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class ClassifyConfig(TrainingArguments):
    """Fields with init=False can't be set in `train`."""

    remove_unused_columns: bool = field(default=False, init=False)
    label_smoothing_factor: float = field(default=0.0, init=False)
    model_init_kwargs: dict | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained, under their own names."}
    )
    dropout: float = field(
        default=0.0, metadata={"help": "Dropout of the base and the head; BERT was fine-tuned with 0.1. 0: none."}
    )
    max_length: int = field(
        default=128,
        metadata={
            "help": "Tokens to which a text, or a pair of texts, is cut in training. model/ reads as many as the base does."
        },
    )
