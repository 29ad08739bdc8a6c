"""Converts messages and text to token ids as TRL's trainers do, with the chat template stored with the model."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lib.models.chat_template import template_sha256


class Encoder:
    """The tokenizer of the model in folder `model_dir`.

    trained_template: SHA-256 of the chat template according to the model's provenance; None: not recorded. tokenizer: used instead
    of the folder's. Raises ValueError if the tokenizer's template has another hash.
    """

    def __init__(self, model_dir: str, trained_template: str | None = None, tokenizer=None):
        from transformers import AutoTokenizer

        self.model_dir = model_dir
        self.tokenizer = tokenizer or AutoTokenizer.from_pretrained(model_dir)
        self.template_sha256 = template_sha256(self.tokenizer)
        if trained_template and trained_template != self.template_sha256:
            raise ValueError(
                f"{model_dir}: the chat template is not the one this model was trained with (sha256 "
                f"{self.template_sha256[:12]} here, {trained_template[:12]} in provenance.json). Put the run's "
                "chat_template.jinja back, or train again with model.chat_template."
            )
        alone = self.bare("a")
        marked = self.tokenizer("a")["input_ids"]
        at = next((i for i in range(len(marked)) if marked[i : i + len(alone)] == alone), 0)
        self.begins: list[int] = marked[:at]
        """Ids that the tokenizer adds before every text, such as a start token or those of a soft prompt; [] for most tokenizers."""
        pad = self.tokenizer.pad_token_id
        self.pad = self.tokenizer.eos_token_id if pad is None else pad
        self.start = (
            self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        )
        self.opening: list[int] = self.begins or [self.start]
        """What a text is scored after."""

    def render(self, messages: list[dict], answering: bool, tools: list | str | None = None) -> list[int]:
        """Returns the ids of a conversation. answering: add the start of the assistant's turn. tools: a list, or its JSON."""
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"{self.model_dir} has no chat template, so it can't read messages: set model.chat_template."
            )
        tools = json.loads(tools) if isinstance(tools, str) else tools
        return self.tokenizer.apply_chat_template(
            messages, tools=tools or None, add_generation_prompt=answering, tokenize=True, return_dict=True
        )["input_ids"]

    def split(self, prompt: list[dict], completion: list[dict], tools: list | str | None = None) -> tuple[list, list]:
        """Returns (prompt ids, completion ids). As in TRL's DPOTrainer, the completion begins at the first id where the rendering of the
        whole conversation differs from that of the prompt."""
        opened, whole = self.render(prompt, True, tools), self.render(prompt + completion, False, tools)
        at = common(opened, whole)
        return whole[:at], whole[at:]

    def plain(self, text: str) -> list[int]:
        """Returns the ids of a plain text as TRL's trainers and lm-eval tokenize it: after the ids that the tokenizer adds before every
        text, unless the text already begins with them. An empty text becomes the start token."""
        begun = self.begins and text.startswith(self.tokenizer.decode(self.begins))
        return ([] if begun else self.begins) + self.bare(text) or [self.start]

    def bare(self, text: str) -> list[int]:
        """Returns the ids of a text without special tokens added."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def continued(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Returns (context ids, continuation ids) as lm-eval splits them.

        Both are tokenized together and cut at the context's own length in tokens; spaces at the end of the context are moved to the
        continuation.
        """
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        if not bare:
            return [*self.opening], self.bare(continuation)
        at = len(self.plain(bare))
        whole = self.plain(bare + continuation)
        return whole[:at], whole[at:]

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def ends(model_dir: str, config, tokenizer, revision: str | None = None) -> set[int]:
    """Returns the ids that end generation: those of the generation config (otherwise of the model's config) and the tokenizer's
    eos_token."""
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(model_dir, revision=revision).eos_token_id
    except OSError:  # the model has no generation config
        found = None
    found = GenerationConfig.from_model_config(config).eos_token_id if found is None else found
    return {i for i in [*(found if isinstance(found, list) else [found]), tokenizer.eos_token_id] if i is not None}


def common(a: Sequence, b: Sequence) -> int:
    """Returns the length of the common prefix of two sequences."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
