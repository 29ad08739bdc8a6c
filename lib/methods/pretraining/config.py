"""Settings of pre-training: the keys of `train:` in jobs/pretrain.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments


@dataclass
class PretrainConfig(TrainingArguments):
    """Fields with init=False can't be set in `train`."""

    remove_unused_columns: bool = field(default=False, init=False)
    label_smoothing_factor: float = field(default=0.0, init=False)
    model_init_kwargs: dict | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained, under their own names."}
    )
    objective: Literal["clm", "prefix_lm", "mlm", "nsp", "electra", "span_corruption"] = field(
        default="clm",
        metadata={
            "help": "What is predicted. clm: the next token. prefix_lm: the next token after a prefix that is read in both directions. "
            "mlm: masked tokens. nsp: masked tokens, and whether a segment follows another. electra: which tokens were replaced. "
            "span_corruption: masked spans (T5)."
        },
    )
    max_length: int = field(
        default=128,
        metadata={
            "help": "Tokens of text in a block. Texts are joined and cut into blocks of this length; the objective adds special tokens."
        },
    )
    separate_texts: bool = field(
        default=False,
        metadata={"help": "clm: a text doesn't see the texts before it in its block. prefix_lm: always so."},
    )
    mlm_probability: float = field(
        default=0.15, metadata={"help": "mlm, nsp, electra: share of the tokens of a block that are predicted."}
    )
    whole_words: bool = field(
        default=False, metadata={"help": "mlm, nsp, electra: choose all tokens of a word together."}
    )
    next_segment: Literal["random", "swapped"] = field(
        default="random",
        metadata={
            "help": "nsp: the wrong second segment. random: from another block (BERT). swapped: the two segments in the wrong order "
            "(sentence-order prediction, ALBERT)."
        },
    )
    generator_size: float = field(
        default=0.25, metadata={"help": "electra: width of the generator as a share of the discriminator's."}
    )
    discriminator_weight: float = field(
        default=50.0, metadata={"help": "electra: λ, weight of the discriminator's loss."}
    )
    noise_density: float = field(
        default=0.15, metadata={"help": "span_corruption: share of the tokens that are masked."}
    )
    mean_noise_span_length: float = field(
        default=3.0, metadata={"help": "span_corruption: mean length of the masked spans, in tokens."}
    )
    denoisers: Literal["spans", "mixture"] = field(
        default="spans",
        metadata={
            "help": "span_corruption: spans as set above, or the mixture of UL2 (Tay et al. 2022): seven ways of masking, each with "
            "the token of its mode in front."
        },
    )
