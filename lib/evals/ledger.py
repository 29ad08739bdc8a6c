"""What a sweep has already got: the results of every finished shard, one file each, under <run>/ledger/.

A shard's file is named by what was asked of which weights and by the code that answers, so a sweep that was killed goes on with what is missing, on
any number of processes; a changed config asks other things and finds only what is still the same. One file appears
whole (lib/run.py), so an example is never half there, lost or scored twice.

    {"model": "sft", "what": "answers (greedy)", "rows": 2, "seconds": 3.1}        the shard
    {"answers": [{"text": "7xfan …", "tokens": [39, 104], "finished": true}]}      one line per example
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from lib.generator import Answer, Score
from lib.run import Run


class Ledger:
    """The shards found in `run`'s ledger/ when it is opened, and those put there since."""

    def __init__(self, run: Run):
        self.run = run
        self.there = set(run.files("ledger")) if run.fs.exists(run.at("ledger")) else set()

    def get(self, key: str, rows: int) -> tuple[list, float] | None:
        """(results, seconds they took) of a shard; None if it isn't there or its file is damaged."""
        if f"{key}.jsonl" not in self.there:
            return None
        try:
            head, *lines = [json.loads(line) for line in self.run.read_text(f"ledger/{key}.jsonl").splitlines()]
            results = [_result(line) for line in lines]
        except (ValueError, KeyError, TypeError):  # a damaged disk or store; the shard is simply done again
            return None
        return (results, head["seconds"]) if len(results) == rows else None

    def put(self, key: str, model: str, what: str, results: list, seconds: float) -> None:
        head = {"model": model, "what": what, "rows": len(results), "seconds": round(seconds, 3)}
        lines = [json.dumps(x) for x in (head, *(_line(r) for r in results))]
        self.run.write_text(f"ledger/{key}.jsonl", "\n".join(lines) + "\n")
        self.there.add(f"{key}.jsonl")


CODE = (
    "attention",
    "batching",
    "cache",
    "encode",
    "generator",
    "linear",
    "reward_model",
    "sampling",
    "speculative",
    "transformers_generator",
    "vllm_generator",
)
"""Files of lib/ that decide an answer: with others of them, nothing in a ledger is taken for the same."""


@functools.cache
def _code() -> str:
    files = [Path(__file__).parent.parent / f"{name}.py" for name in CODE]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def key(weights: str, method: str, args: tuple) -> str:
    """Name of a shard: `args` are what the model is asked, `weights` identifies it and how it is run."""
    asked = json.dumps(
        [_code(), weights, method, args], default=asdict
    )  # a pickle would tell equal texts from the same text
    return hashlib.sha256(asked.encode()).hexdigest()[:32]


def _line(result) -> dict:
    if isinstance(result, list):
        return {"answers": [asdict(a) for a in result]}
    return {"score": asdict(result)} if isinstance(result, Score) else {"reward": result}


def _result(line: dict):
    """What _line was given; JSON keeps floats to the last bit."""
    if "answers" in line:
        return [Answer(**{**a, "tokens": tuple(a["tokens"])}) for a in line["answers"]]
    return Score(**line["score"]) if "score" in line else float(line["reward"])
