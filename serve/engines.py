"""The HTTP applications of vLLM and of transformers, serving one run. vLLM's server is used only here and in serve/resolver.py."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lib.generation import vllm_generator
from lib.models import locate, quantized_formats
from lib.runtime import hardware
from lib.runtime.device import of_worker
from serve import adapters
from serve.adapters import Shelf
from serve.draft import Draft
from serve.embedding import Embedder
from serve.serving import Plan


@dataclass
class Engine:
    app: Any
    """ASGI."""
    title: str
    names: dict[str, str]
    """{a model's name for clients: its name in the application}, the run first."""
    lacks: tuple[str, ...]
    """Request fields that it would silently ignore."""
    check: Callable[[], Awaitable[None]]
    """Raises if the engine is dead."""
    close: Callable[[], None] = lambda: None
    """Frees the resources of a dead engine."""
    shelf: Shelf | None = None
    """Runs whose adapters `load` can load."""
    load: Callable[[str], Awaitable[bool]] | None = None
    """Loads the run of this name and adds it to `names`. Returns False if there is none; raises ValueError if it can't be loaded."""


def called(planned: Plan) -> str:
    return planned.serving.called


def speculative(draft: Draft) -> dict[str, Any]:
    """Returns vLLM's speculative_config."""
    more: dict[str, dict[str, Any]] = {
        "ngram": {"prompt_lookup_min": 1, "prompt_lookup_max": 3},  # as lib/generation/speculative.py's Lookup
        "draft_model": {"model": locate.path(draft.base)} if draft.base else {},
    }
    return {"method": draft.method, "num_speculative_tokens": draft.tokens, **more.get(draft.method, {})}


def dtype(wanted: str, device: str, base: str) -> str:
    """Returns vLLM's --dtype. Its own auto picks bfloat16 even on CPUs without it; quantised layers are left to vLLM's choice."""
    return hardware.dtype(wanted, device) if device == "cpu" and not quantized_formats.found(base) else wanted


async def vllm(planned: Plan) -> Engine:
    """Starts vLLM with its own routes (chat, completions, models, tokenize, metrics, …) and its continuous batching."""
    device = of_worker()
    vllm_generator.environment("WARNING", device)
    vllm_generator.check_kernels(planned.base, device)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.usage.usage_lib import UsageContext  # it determines vLLM's default batch size on a GPU
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.async_llm import AsyncLLM

    s, name = planned.serving, called(planned)
    argv = ["--model", locate.path(planned.base), "--served-model-name", name]
    argv += ["--dtype", dtype(s.dtype, device, planned.base)]
    argv += ["--kv-cache-dtype", s.kv_cache_dtype]
    argv += ["--max-model-len", str(s.max_model_len)] if s.max_model_len else []
    argv += ["--enforce-eager"] if device == "cpu" else []
    if s.tool_calls and s.task == "generate":
        argv += ["--enable-auto-tool-choice", "--tool-call-parser", s.tool_calls]
    shelf = Shelf(planned.adapters_from, planned.base) if planned.adapters_from else None
    kept = [*planned.adapters.values(), *(shelf.names().values() if shelf else ())]
    ranks = [adapters.rank(folder) for folder in kept] + ([adapters.LATER] if shelf else [])
    most = adapters.room(ranks) if ranks else 0
    argv += ["--enable-lora", "--max-lora-rank", str(most)] if most else []
    if planned.adapters:
        argv += ["--lora-modules", *(f"{k}={folder}" for k, folder in planned.adapters.items())]
    if planned.serving.task == "embed":
        argv += ["--runner", "pooling"]
        if not Path(locate.path(planned.base), "modules.json").is_file():  # otherwise vLLM follows that file
            argv += ["--pooler-config", json.dumps({"pooling_type": "MEAN"})]
    argv += ["--speculative-config", json.dumps(speculative(planned.draft))] if planned.draft else []
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(argv)
    # In a thread, so that requests that arrive while an engine is being replaced get their 503.
    engine = await asyncio.to_thread(
        AsyncLLM.from_engine_args, AsyncEngineArgs.from_cli_args(args), usage_context=UsageContext.OPENAI_API_SERVER
    )
    tasks = await engine.get_supported_tasks()
    app = build_app(args, tasks, engine.model_config)
    await init_app_state(engine, app.state, args, tasks)
    app.state.server = SimpleNamespace(should_exit=False)  # vLLM would make its own server exit when the engine dies
    names = {name: name} | {k: k for k in planned.adapters}
    load = None
    if shelf:
        from serve import resolver

        load = resolver.attach(app, shelf, names, most)
    return Engine(app, f"vLLM {vllm_generator.version()}", names, (), engine.check_health, engine.shutdown, shelf, load)


async def transformers(planned: Plan) -> Engine:
    """Starts the routes of `transformers serve` for chat and completions, or /v1/embeddings."""
    from importlib.metadata import version

    import torch
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    device = of_worker()
    kind = hardware.dtype(planned.serving.dtype, device)
    where, name, title = locate.path(planned.base), called(planned), f"transformers {version('transformers')}"

    async def check() -> None:
        """Never fails: the engine runs in this process."""

    listing = {"object": "list", "data": [{"id": name, "object": "model", "owned_by": title}]}
    listed = Route("/v1/models", lambda request: JSONResponse(listing))
    if planned.serving.task == "embed":
        embedder = Embedder(where, getattr(torch, kind), device)
        health = Route("/health", lambda request: JSONResponse({"status": "ok"}))
        return Engine(Starlette(routes=[embedder.route(name), listed, health]), title, {name: name}, (), check)

    from serve import by_transformers

    app = await asyncio.to_thread(
        by_transformers.application, where, name, kind, device, planned.serving.max_model_len, planned.serving.at_once
    )
    app.router.routes.append(listed)
    return Engine(app, title, {name: where}, by_transformers.LACKS, check)
