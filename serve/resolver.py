"""Loads the LoRA runs of a folder on first request, through vLLM's LoRAResolver.

VLLM_ALLOW_RUNTIME_LORA_UPDATING, which would also consult resolvers, stays unset: it opens a route by which a client could make
the server load any path. Here a client sends only a name, which is looked up in the folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.responses import JSONResponse
from starlette.routing import Route
from vllm.entrypoints.serve.engine.protocol import ErrorResponse, ModelCard
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from serve.adapters import Shelf, rank


class Resolver(LoRAResolver):
    def __init__(self, shelf: Shelf):
        self.shelf = shelf

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        adapter = await asyncio.to_thread(self.shelf.find, lora_name)
        return LoRARequest(lora_name, 1, adapter) if adapter else None  # vLLM replaces the id 1


def attach(app, shelf: Shelf, names: dict[str, str], most: int) -> Callable[[str], Awaitable[bool]]:
    """Adds the runs of `shelf` to vLLM's application: /v1/models lists them, and the returned function loads one by name.

    The function adds the run to `names` and returns True, returns False if there is no such run, and raises ValueError if its
    adapter can't be loaded. most: the highest rank that the engine was started for.
    """
    models = app.state.openai_serving_models
    models.lora_resolvers = [Resolver(shelf)]

    async def load(name: str) -> bool:
        adapter = await asyncio.to_thread(shelf.find, name)
        if not adapter:
            return False
        if (high := rank(adapter)) > most:
            raise ValueError(f"{name} has rank {high}, and there is room for {most}. Restart the server.")
        found = await models.resolve_lora(name)
        if isinstance(found, ErrorResponse):
            raise ValueError(found.error.message)
        names[name] = name
        return True

    async def listed(request):
        shown = await models.show_available_models()
        there = {m.id for m in shown.data}
        waiting = [name for name in await asyncio.to_thread(shelf.names) if name not in there]
        shown.data += [ModelCard(id=name, parent=models.base_model_paths[0].name) for name in waiting]
        return JSONResponse(shown.model_dump())

    app.router.routes.insert(0, Route("/v1/models", listed))
    return load
