"""What is to be served, and every check that needs no model in memory.

An engine is one replica's, on one GPU. ray.serve.llm, which spreads one over several nodes, is no choice here: its HTTP ingress
is its own, so nothing of serve/guard.py (token, 429, sizes, times) would stand before it, it takes LoRA runs from s3 alone and
answers 500 for one that isn't there (ray 2.60), and on a CPU it can't be tried with more than one worker.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from lib import quantized, vllm_generator
from lib.evals import spec
from lib.run import absolute
from serve import draft, embedding
from serve.adapters import Shelf
from serve.adapters import folder as adapter_folder
from serve.draft import Draft

IDLE_S = 300.0


@dataclass
class Serving:
    """One application: a run behind an OpenAI-compatible API."""

    run: str
    """A run directory, local or s3://, a model folder or a hub name."""
    name: str = ""
    """What clients call the model. Default: the last part of `run`."""
    task: Literal["generate", "embed"] = "generate"
    """generate: chat and completions. embed: /v1/embeddings, the mean of the last layer over a text's tokens, at length 1, or
    as the sentence-transformers files beside the weights say (with transformers only the mean)."""
    adapters: dict[str, str] = field(default_factory=dict)
    """LoRA runs of the same base, {name for clients: run}; chosen by the request's `model`. Needs vLLM."""
    adapters_from: str = ""
    """A folder of runs: the finished LoRA runs of the same base in it, also those to come, by their names, loaded when first
    asked for. Needs vLLM."""
    draft: str = ""
    """What guesses tokens ahead, so that answers come sooner: ngram, suffix (serve/draft.py) or a run or model with the same
    vocabulary, such as a distilled one. Empty: nothing does. Needs vLLM."""
    draft_tokens: int = 0
    """Tokens guessed at a time. 0: as the draft run's reports/certificate.json found best, else 4."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """auto: vLLM where it is installed and loads the format, else transformers (no logprobs, n or JSON schema)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and arithmetic. auto: as lib/hardware.py says, with transformers and on a CPU; the weights' own with vLLM on a GPU."""
    max_model_len: int | None = None
    """Tokens of prompt and answer together. None: what the model can."""
    tool_calls: str = "hermes"
    """How the model writes a call of a tool, by the name of vLLM's parser; hermes: <tool_call>{"name": …}</tool_call>, as Qwen
    and many others do. Empty: its calls stay text. With transformers they are text where the tokenizer doesn't say how it writes them."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """Type of the keys and values kept of what was read. auto: the weights' own; fp8 (e4m3) halves them. Needs vLLM."""
    replicas: int = 1
    """Copies of the model, each with a GPU where there are any."""
    max_replicas: int | None = None
    """As many at most, started and ended with the load. None: always `replicas`."""
    idle_s: float | None = None
    """Seconds for which the load of the last half minute needs fewer than there are, before one is ended; with max_replicas. None: IDLE_S."""
    at_once: int = 32
    """Requests under way in a replica; more wait their turn."""
    queue: int | None = None
    """Requests that wait their turn in a replica; more are told 429 and when to come again. None: 4 times at_once."""
    timeout_s: float = 300.0
    """Seconds for one request, its wait included; then 504, or the end of its stream."""
    max_body_mb: float = 4.0
    """Megabytes of one request; more are told 413."""
    token_env: str = "SHOESTRING_TOKEN"
    """Environment variable that holds the bearer token clients must send. Where it isn't set, only this machine is answered."""
    port: int = 8000
    """Port of this machine where `serve run` listens. On a cluster that runs already, its own port counts (http_options)."""

    @property
    def called(self) -> str:
        """What clients call the run."""
        return self.name or self.run.rstrip("/").removeprefix("package:").rsplit("/", 1)[-1]

    @property
    def waiting(self) -> int:
        """Requests that may wait their turn."""
        return 4 * self.at_once if self.queue is None else self.queue


@dataclass(frozen=True)
class Plan:
    serving: Serving
    base: str
    """As lib.models.locate returned it."""
    adapters: dict[str, str]
    """{name: folder with the adapter}"""
    vllm: bool
    trained_template: str | None
    token_sha256: str | None
    """The token itself stays in the environment of whoever starts the application."""
    draft: Draft | None = None
    adapters_from: str = ""
    """The folder, absolute."""


def read(kind: type, args: dict[str, Any], program: str):
    """`args` of `serve run PROGRAM:app key=value …` as a `kind`, which has a key `run`. Raises ValueError naming the key."""
    from pydantic import TypeAdapter, ValidationError

    from lib.cli import nearest

    known = [f.name for f in fields(kind)]
    for key in args:
        if key not in known:
            raise ValueError(f"{key} is not a key of {program}.{nearest(key, known)} Known: {', '.join(known)}.")
    if "run" not in args:
        raise ValueError("run: say what is to be served, such as run=runs/dpo.")
    try:
        return TypeAdapter(kind).validate_python(args)
    except ValidationError as e:
        first = e.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}, not {first['input']!r}.") from None


def at_least(found, **lows: float) -> None:
    """Raises ValueError naming the first key whose value is below its low, or no number at all."""
    for key, low in lows.items():
        if (value := getattr(found, key)) is not None and not value >= low:
            raise ValueError(f"{key}: must be at least {low}, is {value}.")


def parse(args: dict[str, Any]) -> Serving:
    """The arguments of `serve run serve.app:app key=value …`, or `args` of a YAML file; adapters also as adapters.NAME=RUN.

    Raises ValueError naming the key.
    """
    given = dict(args)
    adapters = given.pop("adapters", None) or {}
    if not isinstance(adapters, dict):
        raise ValueError(f"adapters: {adapters!r} has no name for clients. Say adapters.NAME=RUN.")
    adapters = dict(adapters)
    for key in [k for k in given if k.startswith("adapters.")]:
        name = key.partition(".")[2]
        if name in adapters:
            raise ValueError(
                f"{key}: is there twice, for {adapters[name]} and {given[key]}. Give each a name of its own."
            )
        adapters[name] = given.pop(key)
    found = read(Serving, given | {"adapters": adapters}, "serve.app")
    at_least(
        found, replicas=1, at_once=1, queue=0, timeout_s=0.001, idle_s=0.001, max_body_mb=0.001, max_model_len=1,
        draft_tokens=0, port=1,
    )  # fmt: skip
    if not found.called.strip():
        raise ValueError("name: there is none that clients could call the run. Say name=…")
    for name in found.adapters:
        if not name.strip():
            raise ValueError("adapters: one has no name for clients. Say adapters.NAME=RUN.")
        if name == found.called:
            raise ValueError(
                f"adapters.{name}: is what clients call the run itself. Give the adapter another name, or the run: name=…"
            )
    if found.port > 65535:
        raise ValueError(f"port: must be from 1 to 65535, is {found.port}.")
    if found.draft_tokens and not found.draft:
        raise ValueError("draft_tokens: nothing drafts. Say what does: draft=ngram, or a run.")
    if found.idle_s is not None and found.max_replicas is None:
        raise ValueError("idle_s: replicas neither come nor go. Say how many there may be: max_replicas=4.")
    if found.max_replicas is not None and found.max_replicas < found.replicas:
        raise ValueError(f"max_replicas: {found.max_replicas} is below replicas ({found.replicas}).")
    return found


def plan(serving: Serving) -> Plan:
    """Raises ValueError listing every problem found, one a line, each naming its key."""
    problems: list[str] = []
    base, template, adapters, drafts = "", None, {}, None
    try:
        found = spec.find("run", "run", serving.run, serving.dtype)
        base, template = found.base, found.trained_template
    except ValueError as e:
        problems.append(str(e))
    here = vllm_generator.installed()
    vllm = serving.engine == "vllm" or (serving.engine == "auto" and here and not quantized.only_transformers(base))
    if base:
        try:
            quantized.check_engine("run", base, vllm)
        except ValueError as e:
            problems.append(str(e))
    if serving.engine == "vllm" and not here:
        problems.append("engine: vllm is not installed here: make vllm, or with a GPU pip install -e '.[gpu]'.")
    if serving.kv_cache_dtype != "auto" and not vllm:
        problems.append(
            f"kv_cache_dtype: only vLLM keeps keys and values as {serving.kv_cache_dtype}. Install it (make vllm), or say auto."
        )
    for key in ("adapters", "adapters_from", "draft"):
        if getattr(serving, key) and serving.task == "embed":
            problems.append(f"{key}: not with task=embed.")
    if serving.task == "embed" and not vllm and Path(base).is_dir():
        try:
            embedding.check(base)
        except ValueError as e:
            problems.append(str(e))
    for key in ("adapters", "adapters_from"):
        if getattr(serving, key) and not vllm:
            problems.append(
                f"{key}: only vLLM serves several on one base. Install it, or serve the adapter's run itself."
            )
    runs = absolute(serving.adapters_from) if serving.adapters_from else ""
    if runs and not Path(runs).is_dir():
        problems.append(f"adapters_from: there is no folder {runs} on this machine.")
    if serving.draft and not vllm:
        problems.append(
            "draft: only vLLM takes one here. Install it: make vllm, or with a GPU pip install -e '.[gpu]'."
        )
    elif serving.draft and base:
        try:
            drafts = draft.find(serving.draft, serving.draft_tokens, base)
        except ValueError as e:
            problems.append(str(e))
    for name, address in serving.adapters.items():
        try:
            adapters[name] = adapter_folder(f"adapters.{name}", address, base)
        except ValueError as e:
            problems.append(str(e))
    for name, there in Shelf(runs, base).names().items() if runs and base and not problems else ():
        if name == serving.called or adapters.get(name, there) != there:
            taken = "the run itself" if name == serving.called else serving.adapters[name]
            problems.append(
                f"adapters_from: {runs}/{name} has the name by which clients call {taken}. Give that another: name=… or adapters.NAME=…"
            )
    if problems:
        raise ValueError("\n".join(problems))
    token = os.environ.get(serving.token_env)
    digest = hashlib.sha256(token.encode()).hexdigest() if token else None
    return Plan(serving, base, adapters, vllm, template, digest, drafts, runs)
