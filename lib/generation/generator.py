"""The interface of engines that generate answers with a language model and score text, and the code that all engines share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from lib.data.reasoning import OPEN
from lib.generation.batching import windows
from lib.generation.sampling import Sampling
from lib.models.encode import Encoder, common, ends
from lib.models.window import positions, refuse

Messages = list[dict]
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: tuple[int, ...]
    """As generated, including the token that ended the answer."""
    finished: bool
    """The model ended the answer itself, before max_new_tokens."""
    begun: int = 0
    """Number of tokens at the start of the answer that were given by the prompt (Begun)."""


@dataclass(frozen=True)
class Begun:
    """A prompt with the first tokens of its answer, which the model continues. The Answer includes these tokens."""

    messages: Messages
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    logprob: float
    """Sum over the completion's tokens of log p(token | all tokens before it), in nats."""
    tokens: int
    bytes: int
    """UTF-8 bytes of the completion's text, without special tokens."""
    greedy: bool = False
    """Every token of the completion was the most likely one."""


class Generator(ABC):
    """The model in folder `model_dir`.

    encoder: its Encoder. positions: its maximum context length in tokens; None: unlimited. window: number of tokens read at a time
    when a whole text is scored. ends: ids that end an answer.
    """

    def __init__(self, model_dir: str, trained_template: str | None, window: int):
        from transformers import AutoConfig

        self.encoder = Encoder(model_dir, trained_template)
        config = AutoConfig.from_pretrained(model_dir)
        self.positions = positions(config)
        self.window = min(window, self.positions or window)
        self.ends = ends(model_dir, config, self.encoder.tokenizer)

    @abstractmethod
    def generate(self, prompts: Sequence[Messages | str | Ids | Begun], sampling: Sampling) -> list[list[Answer]]:
        """Generates `sampling.n` answers to each prompt, in the order given.

        A prompt is a list of messages, a text or token ids (tuple) to continue, or a Begun. An answer that reaches the end of the
        model's positions is unfinished. Raises ValueError if a prompt leaves no room for an answer.
        """

    @abstractmethod
    def logprobs(self, pieces: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Scores pieces (context ids, ids to score). Returns for each (sum of the log probabilities of the scored ids in nats, whether
        each of them was the most likely token)."""

    def score(
        self, prompts: Sequence[Messages | str | Ids | None], completions: Sequence, tools: Sequence | None = None
    ) -> list[Score]:
        """Returns the log probability of each completion given its prompt. By type of the prompt, the completion is:

        messages: messages, rendered with the chat template, or an Answer, scored by its tokens. str: a text. None: a whole text.
        tuple of token ids: token ids, whose bytes are counted as 0. Raises ValueError if one is longer than the model's positions.
        """
        tools = tools or [None] * len(prompts)
        pieces: list[tuple[list[int], list[int]]] = []  # (context ids, ids to score)
        owner, size = [], []
        for i, (prompt, completion, tool) in enumerate(zip(prompts, completions, tools, strict=True)):
            if prompt is None:
                ids = self.encoder.bare(completion)
                *ahead, first = self.encoder.opening  # in front of each window
                cut = [([*ahead, *c], scored) for c, scored in windows([first, *ids], self.window - len(ahead))]
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
        # The model doesn't read the last token, it only predicts it.
        lengths = [len(context) + len(scored) - 1 for context, scored in pieces]
        refuse("rows to score", lengths, self.positions, "Leave those rows out of the data.")
        logprobs, counts, greedy = [0.0] * len(prompts), [0] * len(prompts), [True] * len(prompts)
        for i, (_, scored), (value, likeliest) in zip(owner, pieces, self.logprobs(pieces), strict=True):
            logprobs[i] += value
            counts[i] += len(scored)
            greedy[i] = greedy[i] and likeliest
        return [Score(*each) for each in zip(logprobs, counts, size, greedy, strict=True)]

    def opened(self, prompt: Messages | str | Ids | Begun, begins: str) -> tuple[list[int], Ids]:
        """Returns (the ids that the model reads before it generates, those of them that begin the answer).

        begins: as in Sampling; only an answer that isn't begun yet gets it.
        """
        ids, given = self.ids(prompt), prompt.tokens if isinstance(prompt, Begun) else ()
        if given or not begins:
            return ids, given
        if (
            self.encoder.tokenizer.decode(ids[-8:]).rstrip().endswith(OPEN)
        ):  # the chat template begins the reasoning itself
            begins = begins.removeprefix(OPEN).lstrip("\n")
        # Only the tokens that stay the same if more text follows: the model was trained on those of the whole answer.
        alone, followed = self.encoder.bare(begins), self.encoder.bare(begins + "a")
        given = tuple(alone[: common(alone, followed)])
        return [*ids, *given], given

    def ids(self, prompt: Messages | str | Ids | Begun) -> list[int]:
        """Returns the ids that the model reads before it generates."""
        if isinstance(prompt, tuple):
            return list(prompt)
        if isinstance(prompt, str):
            return self.encoder.plain(prompt)
        if isinstance(prompt, Begun):
            return self.encoder.render(prompt.messages, answering=True) + list(prompt.tokens)
        return self.encoder.render(prompt, answering=True)

    def room(self, prompts: Sequence[list[int]], wanted: int) -> list[int]:
        """Returns the maximum length in tokens, up to `wanted`, of the answer to each prompt (ids). Raises ValueError if one has no
        room."""
        if self.positions is None:
            return [wanted] * len(prompts)
        lengths = [len(ids) + 1 for ids in prompts]
        refuse(
            "prompts, each with a token of its answer,", lengths, self.positions, "Leave those rows out of the data."
        )
        return [min(wanted, self.positions - len(ids)) for ids in prompts]

    def answer(self, begun: tuple[int, ...], written: list[int]) -> Answer:
        """Makes the Answer of the given tokens `begun` and the generated tokens `written`."""
        tokens = (*begun, *written)
        return Answer(self.encoder.text(tokens), tokens, tokens[-1] in self.ends, len(begun))
