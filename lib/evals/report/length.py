"""Maximum answer lengths, and the share of answers cut off at that length, whose scores may be too low."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from lib.evals.report.formatting import percent
from lib.evals.report.schema import Metric
from lib.evals.task import Scores
from lib.generation.generator import Answer
from lib.run import Run, absolute

LONGEST = {
    "demo": 64,
    "demo_steps": 128,
    "gsm8k": 512,
    "gsm8k_direct": 64,
    "humaneval": 512,
    "mbpp": 512,
    "ifeval": 1024,
    "jailbreak": 128,
    "xstest": 128,
    "reference": 256,
    "bertscore": 256,
    "mt_bench": 1024,
    "win_rate": 256,
    "arena": 256,
    "kl": 256,
}
"""{task: maximum answer length in tokens unless max_new_tokens is set}; chains of thought and programs usually end within it."""

METRIC = "cut_off"
TOO_MANY = 0.05
"""Share of cut-off answers, per run, task and decoding, above which the report warns."""


def scores(task: str, run: str, ids: list[str], answers: list[Answer], **more) -> Scores:
    """Returns 1 for each answer that was cut off, else 0. more: other fields of Scores (lib/evals/task.py)."""
    cut = [0.0 if a.finished else 1.0 for a in answers]
    return Scores(task, METRIC, run, ids, cut, kind="proportion", better="", **more)


def warnings(metrics: list[Metric]) -> list[str]:
    """Returns a line for every run, task and decoding with too many cut-off answers."""
    return [
        f"{percent(m.value)} of {m.run}'s {m.n} answers to {m.task}{_by(m)} were cut off at their longest: scores may be too low for that reason. "
        "Raise max_new_tokens."
        for m in metrics
        if m.metric == METRIC and m.value > TOO_MANY
    ]


def _by(m: Metric) -> str:
    return "" if m.decoding in ("", "greedy") else f" ({m.decoding})"


def problems(longest: dict[str, int], bases: dict[str, str]) -> list[str]:
    """Returns a problem for each task whose answers don't fit a model's context window. longest: {task: tokens}; bases: {name: run
    or folder}. Models on the hub are checked by the worker that loads them."""
    out = []
    for name, base in bases.items():
        window = _window(base)
        for task, tokens in longest.items():
            if window and tokens >= window:
                out.append(
                    f"max_new_tokens: {tokens} for {task} leaves no room for the question: runs.{name} ({base}) reads {window} tokens. Lower it."
                )
    return out


@functools.cache
def room(bases: tuple[str, ...]) -> int | None:
    """Returns half of the smallest context window among the runs and folders on this disk, the cap for default answer lengths; None
    if no window is known."""
    windows = [w for base in bases if "://" not in base and (w := _window(base))]
    return min(windows) // 2 if windows else None


def _window(base: str) -> int | None:
    if "://" not in base and not Path(absolute(base)).is_dir():
        return None
    run = Run(base)
    name = "model/config.json" if run.fs.exists(run.at("model/config.json")) else "config.json"
    if not run.fs.exists(run.at(name)):
        return None
    config = json.loads(run.read_text(name))
    return (config.get("text_config") or config).get("max_position_embeddings")
