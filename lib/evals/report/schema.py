"""The schema of report.json: measurements, their uncertainty and their provenance. lib/evals/report/render.py reads nothing else."""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from typing import Any

from lib.evals.task import Measured

SCHEMA = 1
"""Increased when the meaning of a field changes; Report.from_json() rejects other versions."""


@dataclass
class Metric(Measured):
    value: float
    low: float | None
    """Ends of the 95% interval; None if the examples can't give one."""
    high: float | None
    n: int
    method: str


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
    """p-value of the hypothesis that the runs are equal: McNemar's mid-p for right-or-wrong scores, a bootstrap for rank
    correlations, else sign flips."""
    better: str = "higher"
    kind: str = "mean"
    unit: str = ""
    decoding: str = ""
    p_holm: float | None = None
    """p, corrected for all rows of the table (Holm)."""
    detectable: float | None = None
    """The smallest difference that these examples would detect with a power of 80%."""
    judge: str | None = None


@dataclass
class Verdict:
    claim: str
    """The result, "sft is above base on demo, exact", or a threshold to be met, "dpo stays within 10 nats of sft"."""
    holds: bool | None
    """True: better, or the threshold is met; False: worse, or it is missed; None: the examples can't tell."""
    figure: str
    """The number to read first: "3% → 71%"."""
    evidence: str
    n: int
    compares: bool = False
    """True if it compares two runs; False if it checks a threshold."""
    cautions: list[str] = field(default_factory=list)
    """Reasons not to rely on it, whatever its interval: biases that its judge showed (lib/evals/report/cautions.py)."""


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
    """The jobs/ file that made it, or "base" for a model that isn't a run."""
    parent: str | None = None
    curves: list[Curve] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    """{dotted key: value} of the resolved job.yaml."""
    command: str | None = None
    template_sha256: str | None = None
    makes: str = "causal_lm"
    """The kind of its model/ (lib/stage/stage.py, Makes)."""


@dataclass
class Overlap:
    """How many of a task's examples occur in a run's training data (lib/evals/measures/contamination.py)."""

    task: str
    run: str
    found: int | None
    """None if the training data can no longer be read."""
    n: int
    first: list[str] = field(default_factory=list)
    """Ids of the first ten."""
    note: str = ""


@dataclass
class Failures:
    """The worst-scored answers of a task."""

    task: str
    decoding: str
    run: str
    """The run that gave these answers: the last of the runs."""
    metric: str
    total: int
    """Number of answers that got the same score as the worst of these."""
    samples: list[Sample] = field(default_factory=list)


@dataclass
class Calibration:
    """Calibration of a reward model: it is calibrated if P(chosen ≻ rejected) = σ(margin)."""

    run: str
    predicted: list[float]
    """Mean σ(|margin|) of groups with equal numbers of pairs, ascending."""
    right: list[float]
    """Share of each group's pairs that it orders correctly."""
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
    """The commands that reproduce this report, in order."""
    next: list[str]
    """Three commands to try next."""
    settings: dict[str, Any]
    """{dotted key: value} of the evaluation."""
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
        """Parses a report. Raises ValueError if it has another schema version."""
        raw = json.loads(text)
        if raw.get("schema") != SCHEMA:
            raise ValueError(
                f"this report has schema {raw.get('schema')}; this version reads {SCHEMA}: rerun jobs/eval.py."
            )
        return _build(cls, raw)


def _build(kind, raw):
    """Builds dataclasses from parsed JSON, following their annotations."""
    if dataclasses.is_dataclass(kind):
        types = typing.get_type_hints(kind)
        return kind(**{k: _build(types[k], v) for k, v in raw.items()})
    if typing.get_origin(kind) is list and isinstance(raw, list):
        return [_build(typing.get_args(kind)[0], v) for v in raw]
    return raw


def schema() -> dict:
    """Returns the JSON schema of report.json."""
    from pydantic import TypeAdapter

    return TypeAdapter(Report).json_schema()


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """{"data": {"source": "demo"}} → {"data.source": "demo"}; empty sections are kept."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
