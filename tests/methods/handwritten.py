"""A tokenizer and blocks of hand-written tokens for the objectives of pre-training."""

import itertools
from types import SimpleNamespace
from typing import ClassVar

from lib.methods.pretraining.blocks import Blocks

SPECIAL = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3}
TOKENS = 40


class Tokenizer:
    """Tokens 0 to 3 are BERT's special ones, 30 to 37 T5's: </s>, <pad> and sentinels."""

    pad_token_id, cls_token_id, sep_token_id, mask_token_id, eos_token_id = 0, 1, 2, 3, 30
    vocabulary = (
        SPECIAL | {"</s>": 30} | {f"<extra_id_{n}>": 31 + n for n in range(5)} | {"[R]": 36, "[S]": 37, "[X]": 38}
    )
    all_special_ids = (0, 1, 2, 3, 30)
    added_tokens_decoder: ClassVar = {i: SimpleNamespace(special=True) for i in range(31, 39)}

    def __len__(self):
        return TOKENS

    def get_vocab(self):
        return self.vocabulary


def objective(name: str, **args):
    from lib.methods.pretraining.trainer import OBJECTIVES

    given = {
        "objective": name, "max_length": 16, "mlm_probability": 0.25, "whole_words": False, "separate_texts": False, "next_segment": "random",
        "discriminator_weight": 50.0, "noise_density": 0.25, "mean_noise_span_length": 2.0, "denoisers": "spans",
    }  # fmt: skip
    return OBJECTIVES[name](SimpleNamespace(**given | args), Tokenizer())


def blocks(count: int = 3, length: int = 16, seed: int = 0, ends=(5, 9)) -> Blocks:
    """Blocks of tokens 4 to 29. Each block has three texts, which end after the positions `ends`."""
    cuts = [0, *ends, length]
    texts = []
    for n in range(count):
        ids = [4 + (n * 7 + i * 5) % 26 for i in range(length)]
        texts += [{"ids": ids[a:b], "words": [i // 2 for i in range(b - a)]} for a, b in itertools.pairwise(cuts)]
    return Blocks(texts, length, seed, "train")


def tokens(made: Blocks) -> list[list[int]]:
    return [made[n]["input_ids"].tolist() for n in range(len(made))]


def batch(name: str, made: Blocks | None = None, **args) -> dict:
    made = blocks() if made is None else made
    return {k: v.tolist() for k, v in objective(name, **args).collate([made[i] for i in range(len(made))]).items()}
