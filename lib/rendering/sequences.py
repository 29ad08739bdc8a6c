"""Renders and tokenises a row as TRL 1.16 does: `_prepare_dataset` of its SFTTrainer, DPOTrainer and RewardTrainer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lib.data import reasoning
from lib.data.marks import learnt
from lib.data.rows import Message
from lib.models import text_pairs
from lib.models.encode import common

SPECIALS = {"mlm": 2, "electra": 2, "nsp": 3}
"""{objective of pre-training: special tokens that it adds to a block}"""


@dataclass(frozen=True)
class Settings:
    """The settings in a stage's `train` section that determine how its rows become tokens."""

    scores: bool
    """Whether whole conversations are scored and no token is learnt, as for a reward model."""
    max_length: int | None
    keep_end: bool
    """Whether sequences over max_length are cut at the beginning, not at the end."""
    packing: str | None
    """TRL's packing_strategy; None: each example is a batch row of its own."""
    learns_prompts: bool
    eos_token: str | None
    objective: str | None = None
    """Of pre-training, which joins texts and cuts them into blocks; None for other stages."""
    embeds: bool = False
    """Whether each text of a row is embedded, and no token is learnt."""
    classifies: bool = False
    """Whether a row is a text, or a pair of texts, with a class or a score, and no token is learnt."""
    masks_reasoning: bool = False
    """Whether reasoning in an answer carries no loss (data.reasoning: mask)."""
    answers: int = 0
    """Answers that the model generates to each prompt; 0: rows hold the answers."""
    passes: int = 1
    """How often it learns from each of them."""
    answer_tokens: int = 0
    """Longest of them."""
    virtual: int = 0
    """Virtual tokens of a soft prompt; max_length is without them."""

    @classmethod
    def of(cls, makes: str, train, reasoning: str | None = None, virtual: int = 0) -> Settings:
        """makes: the stage's kind of model; train: an object with the fields of the stage's TRL config class; reasoning: the key of
        data; virtual: tokens of a soft prompt, which train.max_length counts."""
        most = getattr(train, "max_length", None)
        objective = getattr(train, "objective", None)
        packing = "wrapped" if objective else train.packing_strategy if getattr(train, "packing", False) else None
        return cls(
            scores=makes == "reward",
            max_length=most and most - virtual,
            keep_end=getattr(train, "truncation_mode", None) == "keep_end",
            packing=packing,
            learns_prompts=getattr(train, "completion_only_loss", None) is False,
            eos_token=getattr(train, "eos_token", None),
            objective=objective,
            embeds=makes == "encoder",
            classifies=makes == "classifier",
            masks_reasoning=reasoning == "mask",
            answers=getattr(train, "num_generations", None) or int(hasattr(train, "max_completion_length")),
            passes=getattr(train, "num_iterations", None) or 1,
            answer_tokens=getattr(train, "max_completion_length", None) or 0,
            virtual=virtual,
        )

    @property
    def specials(self) -> int:
        """Special tokens that are added to max_length tokens of text."""
        return SPECIALS.get(self.objective or "", 0)

    @property
    def reads_only(self) -> bool:
        """Whether no token is learnt, and long texts are cut."""
        return self.embeds or self.classifies

    @property
    def cuts(self) -> bool:
        """Whether long examples are cut instead of split into several."""
        return self.packing in (None, "bfd")

    def cut(self, ids: list[int]) -> list[int]:
        """Returns a sequence cut to max_length."""
        if self.max_length is None or not self.cuts:
            return ids
        return ids[-self.max_length :] if self.keep_end and not self.packing else ids[: self.max_length]

    def learnt(self, s: Sequence) -> int:
        """Returns the number of tokens that carry loss after cutting. 0 if a draw decides it later, as for masks."""
        if self.scores or self.reads_only or self.answers or self.objective not in (None, "clm"):
            return 0
        at, kept = 0 if self.learns_prompts else s.start, len(self.cut(s.ids))
        if self.keep_end and not self.packing:
            at = max(0, at - (len(s.ids) - kept))
        return max(0, kept - at)


@dataclass(frozen=True)
class Parts:
    """The messages of one sequence. A preference row has two sequences; a conversation has one for each answer that is learnt."""

    prompt: list[Message]
    answer: list[Message]


def parts(kind: str, row: dict) -> list[Parts]:
    """Splits a row into its sequences. Raises AssertionError for kinds of rows that no trainer renders."""
    if kind == "chat":  # as lib.data.per_answer
        return [Parts(row["messages"][:i], [row["messages"][i]]) for i in learnt(row)]
    if kind == "labelled":
        return [Parts(row["prompt"], row["completion"])]
    if kind in ("prompt", "problem"):  # the answer is generated later
        return [Parts(row["prompt"], [])]
    assert kind == "preference", kind
    return [Parts(row["prompt"], row[side]) for side in ("chosen", "rejected")]


@dataclass(frozen=True)
class Sequence:
    text: str
    ids: list[int]
    """Before cutting."""
    asked: list[int]
    """The tokens that the model reads before it writes the answer: the prompt with the generation prompt. Empty for texts."""
    start: int
    """Index of the first token of ids that is learnt, or scored as part of the answer: where ids and asked first differ, or after
    masked reasoning."""
    answers: int | None = None
    """Index of the first token of the answer, if it isn't `start`."""


def sequences(
    tokenizer, kind: str, rows: list[dict], settings: Settings
) -> Iterator[tuple[list[Parts], list[Sequence] | Exception]]:
    """Yields each row's parts and sequences, or instead of the sequences the exception that the user's chat template raised."""
    if settings.embeds:
        of_rows = [texts_of(row) for row in rows]
        ids = iter(_ids(tokenizer, [text for texts in of_rows for text in texts]))
        for texts in of_rows:
            yield [], [Sequence(text, next(ids), [], 0) for text in texts]
        return
    if settings.classifies:
        for row in rows:
            texts = texts_of(row)
            yield [], [Sequence("\n".join(texts), text_pairs.tokens(tokenizer, *texts)["input_ids"], [], 0)]
        return
    if kind == "text" and settings.objective:
        texts = [row["text"] for row in rows]
        for text, ids in zip(texts, _ids(tokenizer, texts, add_special_tokens=False), strict=True):
            yield [], [Sequence(text, [*ids, end(tokenizer)], [], 0)]
        return
    if kind == "text":
        eos = tokenizer.eos_token
        texts = [row["text"] if row["text"].endswith(eos) else row["text"] + eos for row in rows]
        for text, ids in zip(texts, _ids(tokenizer, texts), strict=True):
            yield [], [Sequence(text, ids, [], 0)]
        return
    rendered = [_rendered(tokenizer, kind, row, settings) for row in rows]
    good = [triple for _, triples in rendered if not isinstance(triples, Exception) for triple in triples]
    ids = iter(_ids(tokenizer, [text for triple in good for text in triple], add_special_tokens=False))
    for made, triples in rendered:
        if isinstance(triples, Exception):
            yield made, triples
            continue
        found = []
        for _, text, masked in triples:
            asked, whole, before = next(ids), next(ids), next(ids)
            start = 0 if settings.scores else common(asked, whole)
            # A token is masked if it lies wholly in the reasoning or in the line breaks after it.
            after = max(start, common(before, whole)) if masked else start
            found.append(Sequence(text, whole, asked, after, start if masked else None))
        yield made, found


def texts_of(row: dict) -> list[str]:
    """Returns the texts of a row of kind text, contrastive, classified or pair."""
    if "anchor" in row:
        return [row["anchor"], row["positive"], *row["negatives"]]
    found = (row["a"], row["b"]) if "a" in row else (row["text"], row.get("second"))
    return [text for text in found if text is not None]


def end(tokenizer) -> int | None:
    """Returns the id of the token that ends a text in pre-training: eos_token, or sep_token, which BERT has instead."""
    return tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id


def _rendered(tokenizer, kind: str, row: dict, settings: Settings):
    """Returns (parts, [(prompt, whole text, the whole text up to the end of masked reasoning or "") of each]), or the exception that
    the template raised instead of the texts."""
    made, tools, texts = parts(kind, row), row.get("tools") or None, []
    for p in made:
        try:
            asked = "" if settings.scores else _render(tokenizer, p.prompt, tools, True)
            whole = asked if settings.answers else _render(tokenizer, p.prompt + p.answer, tools, False)
            texts.append((asked, whole, _reasoning(asked, whole) if settings.masks_reasoning else ""))
        except Exception as e:
            return made, e
    return made, texts


def _reasoning(asked: str, whole: str) -> str:
    """Returns the start of a rendered conversation up to the end of the reasoning in its last answer; "" if that has none."""
    at = whole.rfind(reasoning.CLOSE)
    if at < common(asked, whole):
        return ""
    end = at + len(reasoning.CLOSE)
    return whole[: end + len(whole[end:]) - len(whole[end:].lstrip("\n"))]


def _render(tokenizer, messages: list[Message], tools: list | None, answering: bool) -> str:
    return tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=answering, tokenize=False)


def _ids(tokenizer, texts: list[str], **how) -> list[list[int]]:
    return tokenizer(texts, **how)["input_ids"] if texts else []
