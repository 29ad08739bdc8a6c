"""The properties of the base model that its training rows must fit: tokenizer, end tokens and context length."""

from __future__ import annotations

from functools import cached_property

from lib.config.job import Model
from lib.models import load, locate, window
from lib.models.encode import ends
from lib.rendering.sequences import Settings, end


class Base:
    """tokenizer: with the job's chat template; ends: ids at which generation stops; window: number of positions, without those of a soft
    prompt; None if no limit is known."""

    def __init__(self, tokenizer, ends: set[int], window: int | None):
        self.tokenizer, self.ends, self.window = tokenizer, ends, window
        self._blank: dict[int, bool] = {}

    @cached_property
    def special(self) -> set[int]:
        """Ids that can end a turn."""
        return self.ends | {i for i, t in self.tokenizer.added_tokens_decoder.items() if t.special}

    def blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = not self.tokenizer.decode([token]).strip()
        return self._blank[token]

    def turn_end(self, ids: list[int]) -> int | None:
        """Returns the id that ends an answer: among the special tokens after its last text, the last one that stops generation, else
        the last of all; None if there are none."""
        found = None
        for token in reversed(ids):
            if token in self.ends:
                return token
            if token in self.special:
                found = token if found is None else found
            elif not self.blank(token):
                break
        return found

    def unfit(self, kind: str, settings: Settings) -> str | None:
        """Returns why rows of this kind can't be rendered; None if they can."""
        if settings.reads_only:
            missing, why = (
                self.tokenizer.pad_token is None,
                "model.base: its tokenizer has no pad_token and no eos_token, one of which fills up the texts of a batch.",
            )
        elif kind == "text" and settings.objective:
            missing, why = (
                end(self.tokenizer) is None,
                "model.base: its tokenizer has no eos_token and no sep_token, one of which ends a text.",
            )
        elif kind == "text":
            missing, why = (
                not self.tokenizer.eos_token,
                "model.base: its tokenizer has no eos_token, which ends a text.",
            )
        else:
            missing, why = (
                not self.tokenizer.chat_template,
                "model.chat_template: the base has no chat template, which the messages of data.source need. Give a Jinja file.",
            )
        return why if missing else None


def base(model: Model, settings: Settings) -> Base:
    """Returns the Base of a model, without loading weights. Raises ValueError or OSError if the tokenizer can't be loaded."""
    from transformers import AutoConfig

    tokenizer = load.tokenizer(model)
    if settings.eos_token:
        tokenizer.eos_token = settings.eos_token
    path = locate.path(model.base)
    config = AutoConfig.from_pretrained(path, revision=model.revision)
    positions = window.positions(config)
    return Base(tokenizer, ends(path, config, tokenizer, model.revision), positions and positions - settings.virtual)
