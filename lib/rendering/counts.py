"""Counts over many rendered rows: how much is learnt, cut, dropped or left out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields

from lib.rendering.base import Base
from lib.rendering.losses import lost
from lib.rendering.sequences import Parts, Sequence, Settings


@dataclass
class Counts:
    """The counts of the training rows or of the held-out rows. An example is what the stage trains on: an answer, a pair or a text."""

    kind: str = ""
    rows: int = 0
    examples: int = 0
    tokens: int = 0
    """Tokens read per epoch, after cutting."""
    learnt: int = 0
    """Tokens that carry loss."""
    longest: int = 0
    """Tokens of the longest sequence, before cutting."""
    dropped: int = 0
    """Examples that the trainer drops, because no learnt token lies within train.max_length."""
    cut: int = 0
    alike: int = 0
    """Pairs whose two sides have the same tokens."""
    outside: int = 0
    """Examples with more tokens than the model has positions."""
    parted: int = 0
    """Examples whose tokens differ from the end of the generation prompt at that place."""
    endless: int = 0
    """Answers without a token that can end a turn."""
    failed: int = 0
    """Rows at which the chat template raised an error."""
    lost: dict[str, int] = field(default_factory=dict)
    """{text that the chat template leaves out: number of examples}"""
    ends: dict[str, int] = field(default_factory=dict)
    """{token that ends turns: number of turns}"""
    first: dict[str, str] = field(default_factory=dict)
    """{name of a count, or of a left-out text: place of the first row counted, with details}"""

    def add(self, place: str, kind: str, row: dict, made: list[Parts], found, settings: Settings, base: Base) -> None:
        """Counts one row. made, found: as lib.rendering.sequences.sequences yields them for the row."""
        self.kind = kind
        self.rows += 1
        if isinstance(found, Exception):
            self._count("failed", f"{place}: {type(found).__name__}: {' '.join(str(found).split())}")
            return
        size = len(found) if settings.embeds else 2 if kind == "preference" else 1
        for at in range(0, len(found), size):
            self._example(place, row, made[at : at + size], found[at : at + size], settings, base)

    def left(self, settings: Settings) -> int:
        """Returns how many batch rows the examples become."""
        if settings.answers:
            return self.examples * settings.answers * settings.passes
        return -(-self.tokens // settings.max_length) if settings.packing else self.examples - self.dropped

    def __add__(self, other: Counts) -> Counts:
        out = Counts(self.kind or other.kind)
        for f in fields(self)[1:]:
            a, b = getattr(self, f.name), getattr(other, f.name)
            if f.name == "first":
                both = b | a
            elif isinstance(a, dict):
                both = {k: a.get(k, 0) + b.get(k, 0) for k in a | b}
            else:
                both = max(a, b) if f.name == "longest" else a + b
            setattr(out, f.name, both)
        return out

    def summary(self) -> dict:
        """Returns the counts for provenance.json, without the places of rows."""
        return {k: v for k, v in asdict(self).items() if k not in ("kind", "first")}

    def _example(self, place: str, row: dict, made: list[Parts], found: list[Sequence], settings: Settings, base: Base):
        self.examples += 1
        self._lengths(place, found, settings, base)
        if not made:  # a text is rendered whole, and has no turns
            return
        for what in sorted({w for p, s in zip(made, found, strict=True) for w in lost(s.text, p, row.get("tools"))}):
            self.lost[what] = self.lost.get(what, 0) + 1
            self.first.setdefault(what, place)
        if settings.scores or settings.answers:
            return
        begins = [s.start if s.answers is None else s.answers for s in found]
        if rest := next((s.asked[at:] for s, at in zip(found, begins, strict=True) if at < len(s.asked)), None):
            self._count("parted", f"{place}: {base.tokenizer.decode(rest)!r}")
        end = base.turn_end(found[0].ids[found[0].start :])
        if end is None:
            self._count("endless", place)
        else:
            token = base.tokenizer.convert_ids_to_tokens(end)
            self.ends[token] = self.ends.get(token, 0) + 1

    def _lengths(self, place: str, found: list[Sequence], settings: Settings, base: Base) -> None:
        limit, sizes = settings.max_length, [len(s.ids) for s in found]
        self.longest = max(self.longest, *sizes)
        over = limit is not None and max(sizes) > limit
        kept = [settings.cut(s.ids) for s in found]
        learnt = [settings.learnt(s) for s in found]
        if settings.reads_only:
            dropped = False
        elif settings.scores:
            dropped = over
        elif len(found) == 2:
            dropped = limit is not None and not settings.keep_end and min(s.start for s in found) >= limit
        else:
            dropped = limit is not None and not settings.packing and not learnt[0]
        if dropped:
            self._count("dropped", place)
            return
        self.tokens += sum(map(len, kept))
        self.learnt += sum(learnt)
        if over and settings.cuts:
            self._count("cut", place)
        if len(kept) == 2 and kept[0] == kept[1] and not settings.embeds:
            self._count("alike", place)
        if settings.objective:  # blocks have all the same length, which lib/rendering/verdict.py checks
            return
        if base.window is not None and min(max(sizes), limit or self.longest) + settings.answer_tokens > base.window:
            self._count("outside", place)

    def _count(self, name: str, first: str) -> None:
        setattr(self, name, getattr(self, name) + 1)
        self.first.setdefault(name, first)
