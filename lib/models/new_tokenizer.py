"""A byte-level BPE tokenizer trained on texts, with the special tokens of the kind of model that will use it.

Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; on bytes, as in GPT-2, so that every text can be encoded and decoded exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTINELS = 100
"""Of T5."""

SPECIAL = {
    "causal_lm": {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "": ["<|im_start|>", "<|im_end|>"]},
    "masked_lm": {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"},
    "seq2seq_lm": {
        "pad_token": "<pad>", "eos_token": "</s>", "": ["[R]", "[S]", "[X]", *(f"<extra_id_{n}>" for n in range(SENTINELS))],
    },
}  # fmt: skip
"""{kind of model: {role of a special token: token; "": tokens without a role}}, in the order of their ids"""
SPECIAL["discriminator"] = SPECIAL["masked_lm"]


def train(texts: Iterable[str], makes: str, size: int) -> Any:
    """Returns a PreTrainedTokenizerFast of `size` tokens, fewer if the texts don't have as many."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    roles: dict[str, Any] = dict(SPECIAL[makes])
    more = roles.pop("", [])
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[*roles.values(), *more], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    ids = {token: bpe.token_to_id(token) for token in roles.values()}
    if "cls_token" in roles:
        used = [(t, ids[t]) for t in ("[CLS]", "[SEP]")]
        bpe.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", used)
    elif makes == "seq2seq_lm":
        bpe.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", ids["</s>"])])
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, extra_special_tokens=more, **roles)
    if makes == "causal_lm":
        made.chat_template = CHATML
    return made
