"""The ledger of an evaluation: the results of every finished shard, one file each, under <run>/ledger/.

A shard's file name is a hash of the request, the weights and the code that computes the result. So a killed evaluation
resumes with the missing shards, on any number of processes, and after a configuration change only unaffected shards are
reused. Files are written atomically (lib/run.py), so no example is half-written, lost or scored twice.

    {"model": "sft", "what": "answers (greedy)", "rows": 2, "seconds": 3.1}        the shard
    {"answers": [{"text": "7xfan …", "tokens": [39, 104], "finished": true}]}      one line per example
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from lib.generation.generator import Answer, Score
from lib.run import Run


class Ledger:
    """The shards in `run`'s ledger/ when it is opened, and those added since."""

    def __init__(self, run: Run):
        self.run = run
        self.there = set(run.files("ledger")) if run.fs.exists(run.at("ledger")) else set()

    def get(self, key: str, rows: int) -> tuple[list, float] | None:
        """Returns (results, seconds of work) of a shard; None if it is missing or its file is damaged."""
        if f"{key}.jsonl" not in self.there:
            return None
        try:
            head, *lines = [json.loads(line) for line in self.run.read_text(f"ledger/{key}.jsonl").splitlines()]
            results = [_result(line) for line in lines]
        except (ValueError, KeyError, TypeError):  # a damaged disk or store; the shard is recomputed
            return None
        return (results, head["seconds"]) if len(results) == rows else None

    def put(self, key: str, model: str, what: str, results: list, seconds: float) -> None:
        head = {"model": model, "what": what, "rows": len(results), "seconds": round(seconds, 3)}
        lines = [json.dumps(x) for x in (head, *(_line(r) for r in results))]
        self.run.write_text(f"ledger/{key}.jsonl", "\n".join(lines) + "\n")
        self.there.add(f"{key}.jsonl")


CODE = (
    "models/cpu_attention",
    "generation/batching",
    "generation/denoiser",
    "generation/embedder",
    "models/pooling",
    "models/masking",
    "generation/kv_cache",
    "models/encode",
    "generation/generator",
    "models/cpu_linear",
    "generation/reward_model",
    "generation/sampling",
    "generation/speculative",
    "generation/transformers_generator",
    "generation/vllm_generator",
)
"""Files of lib/ that determine an answer: a change to any of them invalidates every ledger entry."""


@functools.cache
def _code() -> str:
    files = [Path(__file__).parent.parent / f"{name}.py" for name in CODE]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def key(weights: str, method: str, args: tuple) -> str:
    """Returns a shard's name. args: the request to the model; weights: identifies the model and how it runs."""
    asked = json.dumps(
        [_code(), weights, method, args], default=asdict
    )  # a pickle's bytes depend on whether equal strings are one object
    return hashlib.sha256(asked.encode()).hexdigest()[:32]


def _line(result) -> dict:
    if isinstance(result, list):
        return {"answers": [asdict(a) for a in result]}
    if isinstance(result, tuple):
        return {"numbers": result}
    return {"score": asdict(result)} if isinstance(result, Score) else {"reward": result}


def _result(line: dict):
    """Inverse of _line; JSON preserves floats to the last bit."""
    if "answers" in line:
        return [Answer(**{**a, "tokens": tuple(a["tokens"])}) for a in line["answers"]]
    if "numbers" in line:
        return tuple(line["numbers"])
    return Score(**line["score"]) if "score" in line else float(line["reward"])
