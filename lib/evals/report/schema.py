"""A report: what was measured, how sure it is, where it came from. JSON first; lib/evals/report/render.py reads only this."""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1
"""Raised when a field changes its meaning; read() refuses another."""


@dataclass
class Metric:
    task: str
    metric: str
    run: str
    value: float
    low: float | None
    """95% interval; None where the examples can't give one."""
    high: float | None
    n: int
    method: str
    better: str = "higher"
    kind: str = "mean"
    unit: str = ""
    versus: str | None = None
    judge: str | None = None
    headline: bool = False
    version: str = ""
    decoding: str = ""
    chance: float | None = None
    """What guessing would get, where that is known: 1 in so many choices, or 1/2 of two answers."""


@dataclass
class Comparison:
    """b − a on the same examples."""

    task: str
    metric: str
    a: str
    b: str
    difference: float
    low: float | None
    high: float | None
    n: int
    method: str
    p: float | None = None
    """That they are alike: McNemar's mid-p for right-or-wrong scores, else sign flips."""
    better: str = "higher"
    kind: str = "mean"
    unit: str = ""
    decoding: str = ""
    p_holm: float | None = None
    """p, corrected for all rows of the table (Holm)."""
    detectable: float | None = None
    """The smallest difference that these examples would show 4 times in 5."""
    judge: str | None = None


@dataclass
class Verdict:
    claim: str
    """"sft is above base on demo, exact": what was found, or a bar that was set."""
    holds: bool | None
    """True: better, or within the bar; False: worse, or beyond it; None: the examples can't tell."""
    figure: str
    """The number to read first: "3% → 71%"."""
    evidence: str
    n: int
    compares: bool = False
    """Whether it says which of two runs is better; else whether a bar is reached."""
    cautions: list[str] = field(default_factory=list)
    """Why not to rely on it, whatever its interval: what its judge showed of itself (lib/evals/report/cautions.py)."""


@dataclass
class Sample:
    id: str
    prompt: list[dict]
    answers: dict[str, str]
    """{run: its answer}"""
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    reference: str | None = None


@dataclass
class Curve:
    name: str
    """train loss, held-out loss, …"""
    steps: list[int]
    values: list[float]


@dataclass
class RunInfo:
    name: str
    path: str
    stage: str
    """The jobs/ file that made it; "base" for a model that is no run of ours."""
    parent: str | None = None
    curves: list[Curve] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    """Every key of the resolved job.yaml, dotted."""
    command: str | None = None
    template_sha256: str | None = None
    makes: str = "causal_lm"
    """What its model/ is (lib/stage/stage.py, Makes)."""


@dataclass
class Overlap:
    """How many of a task's examples stand in a run's training data (lib/evals/measures/contamination.py)."""

    task: str
    run: str
    found: int | None
    """None where the training data can't be read any more."""
    n: int
    first: list[str] = field(default_factory=list)
    """Ids of the first ten."""
    note: str = ""


@dataclass
class Failures:
    """The answers of a task that went most wrong."""

    task: str
    decoding: str
    run: str
    """Whose failures they are: the last of the runs."""
    metric: str
    total: int
    """How many answers got the worst score there can be for the worst of these."""
    samples: list[Sample] = field(default_factory=list)


@dataclass
class Calibration:
    """A reward model's margins against how often they are right: P(chosen ≻ rejected) = σ(margin) if it is calibrated."""

    run: str
    predicted: list[float]
    """Mean σ(|margin|) of groups of as many pairs each, from unsure to sure."""
    right: list[float]
    """Share of the pairs of each group which it orders rightly."""
    error: float
    """Expected calibration error: mean of |predicted − right|."""
    n: int


@dataclass
class Timing:
    what: str
    seconds: float
    steps: int | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    detail: str = ""


@dataclass
class Report:
    title: str
    created: str
    seed: int
    runs: list[RunInfo]
    metrics: list[Metric]
    comparisons: list[Comparison]
    verdicts: list[Verdict]
    samples: list[Sample]
    samples_note: str
    timings: list[Timing]
    commands: list[str]
    """What makes this report again, in order."""
    next: list[str]
    """Three commands to try now."""
    settings: dict[str, Any]
    """The evaluation's own, dotted."""
    environment: dict[str, Any]
    """git, packages, hardware, data."""
    warnings: list[str] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    failures: list[Failures] = field(default_factory=list)
    calibrations: list[Calibration] = field(default_factory=list)
    schema: int = SCHEMA

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Raises ValueError for a report of another schema."""
        raw = json.loads(text)
        if raw.get("schema") != SCHEMA:
            raise ValueError(
                f"this report has schema {raw.get('schema')}; this version reads {SCHEMA}: run jobs/eval.py again."
            )
        return _build(cls, raw)


def _build(kind, raw):
    """Dataclasses from plain JSON, by the annotations."""
    if dataclasses.is_dataclass(kind):
        types = typing.get_type_hints(kind)
        return kind(**{k: _build(types[k], v) for k, v in raw.items()})
    if typing.get_origin(kind) is list and isinstance(raw, list):
        return [_build(typing.get_args(kind)[0], v) for v in raw]
    return raw


def schema() -> dict:
    """JSON schema of report.json."""
    from pydantic import TypeAdapter

    return TypeAdapter(Report).json_schema()


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """{"data": {"source": "demo"}} → {"data.source": "demo"}; empty sections stay, so that nothing is hidden."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
