"""Messages to token ids through the chat template that travels with a model, the way TRL's trainers do it."""

from __future__ import annotations

import json

from lib.chat_template import template_sha256


class Encoder:
    """The tokenizer of the model in folder `model_dir`.

    `trained_template`: what the model's provenance says its chat template hashes to; None where nothing is recorded.
    Raises ValueError if the template found is another one.
    """

    def __init__(self, model_dir: str, trained_template: str | None = None):
        from transformers import AutoTokenizer

        self.model_dir = model_dir
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir)
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
        """What the tokenizer puts before every text by itself; [] for most."""
        pad = self.tokenizer.pad_token_id
        self.pad = self.tokenizer.eos_token_id if pad is None else pad
        self.start = (
            self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        )

    def render(self, messages: list[dict], answering: bool, tools: list | str | None = None) -> list[int]:
        """Ids of a conversation; `answering` adds the opening of the assistant's turn."""
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"{self.model_dir} has no chat template, so it can't read messages: set model.chat_template."
            )
        tools = json.loads(tools) if isinstance(tools, str) else tools
        return self.tokenizer.apply_chat_template(
            messages, tools=tools or None, add_generation_prompt=answering, tokenize=True, return_dict=True
        )["input_ids"]

    def split(self, prompt: list[dict], completion: list[dict], tools: list | str | None = None) -> tuple[list, list]:
        """(prompt ids, completion ids). As in TRL's DPOTrainer, the completion starts where the two renderings part."""
        opened, whole = self.render(prompt, True, tools), self.render(prompt + completion, False, tools)
        at = common(opened, whole)
        return whole[:at], whole[at:]

    def plain(self, text: str) -> list[int]:
        """Ids of a text that is no conversation, begun as the tokenizer begins texts, which is how TRL's trainers learn them and
        lm-eval asks: with a start token where it adds one, unless the text has it already. Of an empty text, the start token."""
        begun = self.begins and text.startswith(self.tokenizer.decode(self.begins))
        return ([] if begun else self.begins) + self.bare(text) or [self.start]

    def bare(self, text: str) -> list[int]:
        """Ids of a text, with nothing added."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def continued(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """(context ids, continuation ids) as lm-eval splits them: tokenized together, cut at the context's own length,
        spaces at its end counted to the continuation."""
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        if not bare:
            return [self.start], self.bare(continuation)
        at = len(self.plain(bare))
        whole = self.plain(bare + continuation)
        return whole[:at], whole[at:]

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def ends(model_dir: str, config, tokenizer, revision: str | None = None) -> set[int]:
    """Ids at which generation stops: those of the generation config, else of the model's config, and the tokenizer's eos_token."""
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(model_dir, revision=revision).eos_token_id
    except OSError:  # it has none
        found = None
    found = GenerationConfig.from_model_config(config).eos_token_id if found is None else found
    return {i for i in [*(found if isinstance(found, list) else [found]), tokenizer.eos_token_id] if i is not None}


def common(a: list[int], b: list[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
