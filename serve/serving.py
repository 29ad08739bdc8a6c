"""Settings of a served run, and every check of them that needs no model in memory.

Each replica has one engine on one GPU. ray.serve.llm, which can spread an engine over several nodes, is not used: it has its own
HTTP ingress, so serve/guard.py (token, 429, size and time limits) could not protect it; it loads LoRA runs only from s3 and
answers 500 for a missing one (ray 2.60); and on a CPU it can't be tested with more than one worker.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from lib.generation import model_spec, vllm_generator
from lib.models import quantized_formats
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
    """The model's name for clients. Default: the last part of `run`."""
    task: Literal["generate", "embed"] = "generate"
    """generate: chat and completions. embed: /v1/embeddings, the last layer pooled as the sentence-transformers files beside the weights
    describe (without such files, the mean over a text's tokens), scaled to length 1."""
    adapters: dict[str, str] = field(default_factory=dict)
    """LoRA runs of the same base, {name for clients: run}; chosen by the request's `model`. Needs vLLM."""
    adapters_from: str = ""
    """A folder whose finished LoRA runs of the same base, including ones added later, are served under their names. Each is loaded
    on its first request. Needs vLLM."""
    draft: str = ""
    """Draft for speculative decoding, which makes answers arrive sooner: ngram, suffix (serve/draft.py), or a run or model with
    the same vocabulary, such as a distilled one. Empty: none. Needs vLLM."""
    draft_tokens: int = 0
    """Tokens proposed at a time. 0: the best number in the draft run's reports/certificate.json, else 4."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """auto: vLLM where it is installed and loads the format, else transformers (no logprobs, n or JSON schema)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and arithmetic. auto: with vLLM on a GPU, the weights' own type; otherwise the choice of lib/runtime/hardware.py."""
    max_model_len: int | None = None
    """Most tokens of prompt and answer together. None: the model's own limit."""
    tool_calls: str = "hermes"
    """Format of the model's tool calls, as the name of a vLLM parser; hermes is <tool_call>{"name": …}</tool_call>, used by Qwen and
    many others. Empty: calls stay text. The transformers engine uses the tokenizer's own format; without one, calls stay text."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """Type of the cached keys and values. auto: the weights' own type; fp8 (e4m3) halves the cache. Needs vLLM."""
    replicas: int = 1
    """Copies of the model, each with a GPU where there are any."""
    max_replicas: int | None = None
    """Most replicas; their number follows the load. None: always `replicas`."""
    idle_s: float | None = None
    """Seconds for which the load of the last half minute must need fewer replicas before one is stopped. Needs max_replicas. None: 300."""
    at_once: int = 32
    """Requests that a replica works on at a time; more wait their turn."""
    queue: int | None = None
    """Requests that may wait their turn in a replica; beyond that, it answers 429 with Retry-After. None: 4 times at_once."""
    timeout_s: float = 300.0
    """Most seconds for one request, including its wait; then it gets 504, or its stream ends."""
    max_body_mb: float = 4.0
    """Largest request body in megabytes; larger ones get 413."""
    token_env: str = "SHOESTRING_TOKEN"
    """Environment variable with the bearer token that clients must send. If it isn't set, only this machine is answered."""
    port: int = 8000
    """Port on this machine where `serve run` listens. A cluster that is already running keeps its own port (http_options)."""

    @property
    def called(self) -> str:
        """The run's name for clients."""
        return self.name or self.run.rstrip("/").removeprefix("package:").rsplit("/", 1)[-1]

    @property
    def waiting(self) -> int:
        """The number of requests that may wait their turn."""
        return 4 * self.at_once if self.queue is None else self.queue


@dataclass(frozen=True)
class Plan:
    serving: Serving
    base: str
    """The served model, as returned by lib.models.locate.locate."""
    adapters: dict[str, str]
    """{name: folder with the adapter}"""
    vllm: bool
    trained_template: str | None
    token_sha256: str | None
    """SHA-256 of the bearer token; the token itself stays in the environment of the process that starts the application."""
    draft: Draft | None = None
    adapters_from: str = ""
    """The folder, absolute."""


def read(kind: type, args: dict[str, Any], program: str):
    """Returns the `args` of `serve run PROGRAM:app key=value …` as a `kind`, which has a key `run`. Raises ValueError naming
    the wrong key."""
    from pydantic import TypeAdapter, ValidationError

    from lib.errors import nearest

    known = [f.name for f in fields(kind)]
    for key in args:
        if key not in known:
            raise ValueError(f"{key} is not a key of {program}.{nearest(key, known)} Known: {', '.join(known)}.")
    if "run" not in args:
        raise ValueError("run: is missing. Name the run to serve, such as run=runs/dpo.")
    try:
        return TypeAdapter(kind).validate_python(args)
    except ValidationError as e:
        first = e.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}, not {first['input']!r}.") from None


def at_least(found, **lows: float) -> None:
    """Raises ValueError naming the first key whose value is below its minimum or NaN."""
    for key, low in lows.items():
        if (value := getattr(found, key)) is not None and not value >= low:
            raise ValueError(f"{key}: must be at least {low}, is {value}.")


def parse(args: dict[str, Any]) -> Serving:
    """Returns the settings in the arguments of `serve run serve.app:app key=value …`, or in `args` of a YAML file. Adapters may also be
    given as adapters.NAME=RUN.

    Raises ValueError naming the wrong key.
    """
    given = dict(args)
    adapters = given.pop("adapters", None) or {}
    if not isinstance(adapters, dict):
        raise ValueError(f"adapters: {adapters!r} has no name for clients. Use adapters.NAME=RUN.")
    adapters = dict(adapters)
    for key in [k for k in given if k.startswith("adapters.")]:
        name = key.partition(".")[2]
        if name in adapters:
            raise ValueError(f"{key}: is set twice, to {adapters[name]} and {given[key]}. Give each its own name.")
        adapters[name] = given.pop(key)
    found = read(Serving, given | {"adapters": adapters}, "serve.app")
    at_least(
        found, replicas=1, at_once=1, queue=0, timeout_s=0.001, idle_s=0.001, max_body_mb=0.001, max_model_len=1,
        draft_tokens=0, port=1,
    )  # fmt: skip
    if not found.called.strip():
        raise ValueError("name: clients need a name for the run. Set name=…")
    for name in found.adapters:
        if not name.strip():
            raise ValueError("adapters: one has no name for clients. Use adapters.NAME=RUN.")
        if name == found.called:
            raise ValueError(
                f"adapters.{name}: is already the run's own name for clients. Rename the adapter, or the run with name=…"
            )
    if found.port > 65535:
        raise ValueError(f"port: must be from 1 to 65535, is {found.port}.")
    if found.draft_tokens and not found.draft:
        raise ValueError("draft_tokens: needs a draft. Set draft=ngram, or draft to a run.")
    if found.idle_s is not None and found.max_replicas is None:
        raise ValueError("idle_s: the number of replicas is fixed. Set a maximum as well, such as max_replicas=4.")
    if found.max_replicas is not None and found.max_replicas < found.replicas:
        raise ValueError(f"max_replicas: {found.max_replicas} is below replicas ({found.replicas}).")
    return found


def plan(serving: Serving) -> Plan:
    """Checks the settings against the files and packages on this machine. Raises ValueError with one line per problem, each
    naming its key."""
    problems: list[str] = []
    base, template, adapters, drafts = "", None, {}, None
    try:
        also = ("encoder", "adapter") if serving.task == "generate" else ("encoder",)
        found = model_spec.find("run", "run", serving.run, serving.dtype, also=also)
        base, template = found.base, found.trained_template
    except ValueError as e:
        problems.append(str(e))
    here = vllm_generator.installed()
    vllm = serving.engine == "vllm" or (
        serving.engine == "auto" and here and not quantized_formats.only_transformers(base)
    )
    if base:
        try:
            quantized_formats.check_engine("run", base, vllm)
        except ValueError as e:
            problems.append(str(e))
    if serving.engine == "vllm" and not here:
        problems.append("engine: vllm is not installed here: make vllm, or with a GPU pip install -e '.[gpu]'.")
    if serving.kv_cache_dtype != "auto" and not vllm:
        problems.append(
            f"kv_cache_dtype: only vLLM keeps keys and values as {serving.kv_cache_dtype}. Install it (make vllm), or use auto."
        )
    for key in ("adapters", "adapters_from", "draft"):
        if getattr(serving, key) and serving.task == "embed":
            problems.append(f"{key}: can't be combined with task=embed.")
    if serving.task == "embed" and not vllm and Path(base).is_dir():
        try:
            embedding.check(base)
        except ValueError as e:
            problems.append(str(e))
    for key in ("adapters", "adapters_from"):
        if getattr(serving, key) and not vllm:
            problems.append(
                f"{key}: only vLLM serves several runs on one base. Install it, or serve the adapter's run itself."
            )
    runs = absolute(serving.adapters_from) if serving.adapters_from else ""
    if runs and not Path(runs).is_dir():
        problems.append(f"adapters_from: there is no folder {runs} on this machine.")
    if serving.draft and not vllm:
        problems.append("draft: only vLLM supports one. Install it: make vllm, or with a GPU pip install -e '.[gpu]'.")
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
                f"adapters_from: {runs}/{name} has the same name for clients as {taken}. Rename that: name=… or adapters.NAME=…"
            )
    if problems:
        raise ValueError("\n".join(problems))
    token = os.environ.get(serving.token_env)
    digest = hashlib.sha256(token.encode()).hexdigest() if token else None
    return Plan(serving, base, adapters, vllm, template, digest, drafts, runs)
