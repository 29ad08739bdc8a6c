"""A language model that answers prompts and scores answers, whatever runs it: the parts that all engines share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from lib.batching import windows
from lib.encode import Encoder, ends
from lib.sampling import Sampling
from lib.window import positions, refuse

Messages = list[dict]
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: tuple[int, ...]
    """As generated, with the token that ended it."""
    finished: bool
    """It ended by itself, not at max_new_tokens."""
    begun: int = 0
    """So many of its tokens were given (Begun)."""


@dataclass(frozen=True)
class Begun:
    """A prompt whose answer is begun: the rest of it is asked for. The Answer holds both."""

    messages: Messages
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    logprob: float
    """Sum over the completion's tokens of log p(token | all before), in nats."""
    tokens: int
    bytes: int
    """UTF-8 bytes of the completion's text, special tokens left out."""
    greedy: bool = False
    """Every token was the likeliest one."""


class Generator(ABC):
    """The model in folder `model_dir`. encoder: its own; positions: those that it has, None without a limit; window: tokens of a
    whole text that are read at a time; ends: ids that end an answer."""

    def __init__(self, model_dir: str, trained_template: str | None, window: int):
        from transformers import AutoConfig

        self.encoder = Encoder(model_dir, trained_template)
        config = AutoConfig.from_pretrained(model_dir)
        self.positions = positions(config)
        self.window = min(window, self.positions or window)
        self.ends = ends(model_dir, config, self.encoder.tokenizer)

    @abstractmethod
    def generate(self, prompts: Sequence[Messages | str | Ids | Begun], sampling: Sampling) -> list[list[Answer]]:
        """`sampling.n` answers to each prompt (messages, a plain text or token ids to go on with, or a begun answer), in the order given.
        An answer ends, unfinished, where the model's positions do. Raises ValueError where a prompt leaves no room for any."""

    @abstractmethod
    def logprobs(self, pieces: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Of each piece: the sum of log-probabilities of its second part after the first, and whether every token of it
        was the likeliest."""

    def score(
        self, prompts: Sequence[Messages | str | Ids | None], completions: Sequence, tools: Sequence | None = None
    ) -> list[Score]:
        """Log-probability of each completion after its prompt: messages (rendered by the chat template) or an Answer
        (its very tokens) after messages, plain text after plain text, a whole text where the prompt is None, or token ids
        after token ids (tuples; their bytes are not counted). Raises ValueError where one is longer than the model's positions."""
        tools = tools or [None] * len(prompts)
        pieces: list[tuple[list[int], list[int]]] = []  # (context ids, ids to score)
        owner, size = [], []
        for i, (prompt, completion, tool) in enumerate(zip(prompts, completions, tools, strict=True)):
            if prompt is None:
                ids = self.encoder.bare(completion)
                cut = list(windows([self.encoder.start, *ids], self.window))
                size.append(len(completion.encode()))
            elif isinstance(prompt, tuple):
                cut = [(list(prompt), list(completion))]
                size.append(0)
            elif isinstance(prompt, str):
                cut = [self.encoder.continued(prompt, completion)]
                size.append(len(completion.encode()))
            elif isinstance(completion, Answer):
                cut = [(self.encoder.render(prompt, True, tool), list(completion.tokens))]
                size.append(len(completion.text.encode()))
            else:
                cut = [self.encoder.split(prompt, completion, tool)]
                size.append(len(self.encoder.text(cut[0][1]).encode()))
            pieces += cut
            owner += [i] * len(cut)
        # The last token is predicted, and not read.
        lengths = [len(context) + len(scored) - 1 for context, scored in pieces]
        refuse("rows to score", lengths, self.positions, "Leave those rows out of the data.")
        logprobs, counts, greedy = [0.0] * len(prompts), [0] * len(prompts), [True] * len(prompts)
        for i, (_, scored), (value, likeliest) in zip(owner, pieces, self.logprobs(pieces), strict=True):
            logprobs[i] += value
            counts[i] += len(scored)
            greedy[i] = greedy[i] and likeliest
        return [Score(*each) for each in zip(logprobs, counts, size, greedy, strict=True)]

    def ids(self, prompt: Messages | str | Ids | Begun) -> list[int]:
        """What the model reads before it writes."""
        if isinstance(prompt, tuple):
            return list(prompt)
        if isinstance(prompt, str):
            return self.encoder.plain(prompt)
        if isinstance(prompt, Begun):
            return self.encoder.render(prompt.messages, answering=True) + list(prompt.tokens)
        return self.encoder.render(prompt, answering=True)

    def room(self, prompts: Sequence[list[int]], wanted: int) -> list[int]:
        """How many tokens the answer to each prompt (its ids) can have, at most `wanted`. Raises ValueError where that is none."""
        if self.positions is None:
            return [wanted] * len(prompts)
        lengths = [len(ids) + 1 for ids in prompts]
        refuse(
            "prompts, each with a token of its answer,", lengths, self.positions, "Leave those rows out of the data."
        )
        return [min(wanted, self.positions - len(ids)) for ids in prompts]

    def answer(self, begun: tuple[int, ...], written: list[int]) -> Answer:
        tokens = (*begun, *written)
        return Answer(self.encoder.text(tokens), tokens, tokens[-1] in self.ends, len(begun))
