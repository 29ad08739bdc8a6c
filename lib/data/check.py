"""The result of the pass over the data: lines to print, fields of provenance.json, and input of the job's plan."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

HOW = {
    None: "which the chat template writes or drops (data.reasoning chooses)",
    "learn": "which is written into them and learnt (data.reasoning: learn)",
    "mask": "which is written into them and not learnt (data.reasoning: mask)",
    "remove": "which is removed (data.reasoning: remove)",
}


@dataclass
class Check:
    """What the data is, and what is wrong with it. `lines()` is for printing, `summary()` for provenance.json."""

    source: str
    format: str | None = None
    """Name in lib/data/formats.py, or demo. None on the driver for hub datasets, which only the workers read."""
    kind: str | None = None
    """Kind of the rows that the stage receives: one of `want`."""
    rows: int | None = 0
    """Training rows. None if not all rows have been read."""
    heldout_rows: int | None = 0
    heldout_format: str | None = None
    heldout: str = ""
    """Description of where the held-out rows come from."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """(place, reason) of the first 100 rows that can't be used."""
    bad_rows: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """{reason without the details in brackets: number of bad rows}, over all bad rows."""
    leaks: int = 0
    """Training rows that hold a held-out prompt."""
    leak_examples: list[tuple[str, str, str]] = field(default_factory=list)
    """(place of the training row, place of the held-out row, start of the prompt)"""
    offers_tools: bool = False
    """At least one row has a list of tools."""
    tool_rows: int = 0
    """Rows that offer or call tools, which the chat template must be able to render."""
    wanted: int = 0
    """Training rows labelled true, for a stage that takes labelled rows."""
    negatives: list[int] = field(default_factory=list)
    """[fewest, most] negatives of a contrastive training row; [] for other kinds."""
    mined: dict[str, dict[str, int]] = field(default_factory=dict)
    """{"train" or "heldout": counts of lib/methods/embedding/mining.py}, if negatives were mined."""
    classes: dict[str, int] = field(default_factory=dict)
    """{class: number of training rows} of classified rows."""
    heldout_classes: dict[str, int] = field(default_factory=dict)
    """The same of the held-out rows."""
    scores: list[float] = field(default_factory=list)
    """[lowest, highest] score of the training rows of pairs."""
    unlearnt: int = 0
    """Assistant messages of chat rows that are marked as not to be learnt (lib/data/marks.py)."""
    reasoning: int = 0
    """Answers with reasoning (lib/data/reasoning.py), as far as the rows don't leave it in the text of an answer."""
    how: str | None = None
    """data.reasoning."""
    repeats: int = 0
    """Rows whose text answers began with their prompt, which was removed (lib/data/repeats.py)."""
    unused: int = 0
    """Usable rows that are left out: by the conversion to `kind` (answers labelled false), data.limit or data.heldout_limit."""
    conversion: str | None = None
    also: list[str] = field(default_factory=list)
    """Other formats that fit the columns; data.format chooses one."""
    ignored: list[str] = field(default_factory=list)
    """Files of a folder that are not data."""
    complete: bool = True
    """Whether all rows were read. False on the driver for more than 64 MB and for hub datasets."""
    note: str | None = None
    rendered: dict | None = None
    """From lib.rendering: how many examples are cut, dropped, or partly left out."""
    sha256: str = ""
    """Hash of every row read, in order, before any conversion. If not complete: of the files' names, sizes and times."""

    def need_heldout(self) -> None:
        """Raises ValueError if it is known that no rows are held out."""
        if self.heldout_rows == 0:
            raise ValueError(
                f"data.source: {self.source} has no held-out rows. Raise data.heldout_fraction (1.0 takes all)."
            )

    def need_both_labels(self) -> None:
        """Raises ValueError if it is known that all labelled training rows have the same label."""
        if self.kind == "labelled" and self.complete and self.wanted in (0, self.rows):
            remedy = (
                "jobs/sft.py learns from wanted answers alone" if self.wanted else "there is nothing to prefer to them"
            )
            raise ValueError(
                f"data.source: all {self.rows:,} training answers are labelled {str(bool(self.wanted)).lower()}, and both labels are "
                f"needed. Add answers with the other one; {remedy}."
            )

    def lines(self) -> list[str]:
        """Returns the few lines that are printed before training."""
        if self.format is None:
            return [f"data: {self.source}, {self.note}"]
        kind = f" → {self.kind} ({self.conversion})" if self.conversion else f" ({self.kind})"
        found = self.format + (kind if self.kind != self.format else "")
        if self.complete:
            lines = [
                f"data: {self.source}: {found}, {self.rows:,} training rows, "
                f"{self.heldout_rows:,} held out ({self.heldout})"
            ]
        else:
            lines = [f"data: {self.source}: {found}; {self.note}"]
        if self.bad_rows:
            lines.append(f"data: {self.bad_rows:,} bad rows left out: {self.why_bad()}")
            lines += [f"      {place}: {why}" for place, why in self.bad[:3]]
        if self.leaks:
            lines.append(f"data: {self.leaks:,} training rows dropped because their prompt is held out, such as")
            lines += [f"      {train} = {held}: {prompt}" for train, held, prompt in self.leak_examples[:3]]
        if self.unused:
            lines.append(f"data: {self.unused:,} good rows not used (labelled false, or over a limit)")
        if self.kind == "labelled" and self.complete:
            lines.append(f"data: {self.labels()}")
        if self.negatives and self.complete:
            low, high = self.negatives
            each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
            lines.append(
                f"data: {each} negatives a row" + (f", of which the first {low:,} are used" if low < high else "")
            )
        if self.classes and self.complete:
            lines.append(f"data: {self.each_class()}")
        if self.scores and self.complete:
            lines.append(f"data: scores from {self.scores[0]:g} to {self.scores[1]:g}")
        if self.unlearnt:
            lines.append(f"data: {self.unlearnt:,} answers are marked as not to be learnt (weight 0): context only")
        if self.reasoning:
            lines.append(f"data: {self.reasoning:,} answers have reasoning, {HOW[self.how]}")
        if self.repeats:
            lines.append(f"data: {self.repeats:,} rows repeat their prompt in the answer; it is taken off")
        if self.tool_rows:
            lines.append(f"data: {self.tool_rows:,} rows offer or call tools")
        if self.also:
            lines.append(f"data: the columns would also fit {', '.join(self.also)}; choose with data.format")
        if self.ignored:
            lines.append(f"data: not read: {', '.join(f.rsplit('/', 1)[-1] for f in self.ignored[:5])}")
        return lines

    def class_names(self) -> list[str]:
        """Returns the classes of the training rows, sorted; whole numbers by their value."""
        whole = all(name.removeprefix("-").isdecimal() for name in self.classes)
        return sorted(self.classes, key=lambda name: (int(name) if whole else 0, name))

    def each_class(self, most: int = 12) -> str:
        """Returns the number of training rows of each class, or of the first `most` and of the rarest."""
        names = self.class_names()
        found = f"{len(names):,} classes: " + ", ".join(f"{name} ({self.classes[name]:,})" for name in names[:most])
        if len(names) > most:
            rarest = min(names, key=lambda name: self.classes[name])
            found += f" … (the rarest is {rarest}, {self.classes[rarest]:,})"
        return found

    def labels(self) -> str:
        """Returns the number of training rows per label and, unless they are balanced, the weights that would balance them:
        those with λ_D n_D / λ_U n_U from 1 to 4/3 (Ethayarajh et al. 2024, eq. 8)."""
        assert self.rows is not None, "called only if every row was read (complete)"
        unwanted = self.rows - self.wanted
        found = f"{self.wanted:,} answers are labelled true, {unwanted:,} false"
        if not self.wanted or not unwanted or 1 <= self.wanted / unwanted <= 4 / 3:
            return found
        low, high = unwanted / self.wanted, self.wanted / unwanted
        return (
            f"{found}; train.desirable_weight from {low:.3g} to {low * 4 / 3:.3g} balances them, "
            f"or train.undesirable_weight from {high * 3 / 4:.3g} to {high:.3g}"
        )

    def summary(self) -> dict:
        """Returns the fields that provenance.json keeps."""
        keys = (
            "source format kind rows heldout_rows bad_rows reasons leaks wanted negatives mined classes heldout_classes scores unlearnt reasoning "
            "repeats unused sha256 complete rendered"
        )
        return {k: getattr(self, k) for k in keys.split()}

    def why_bad(self) -> str:
        return ", ".join(f"{n:,} × {why}" for why, n in Counter(self.reasons).most_common(3))
