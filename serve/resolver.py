"""LoRA runs of a folder that vLLM loads when one is first asked for, by its own LoRAResolver.

VLLM_ALLOW_RUNTIME_LORA_UPDATING, which would consult resolvers too, stays unset: it opens a route by which a client could
have any path on the server loaded. A client here says a name, and the folder decides what that is.
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
        return LoRARequest(lora_name, 1, adapter) if adapter else None  # vLLM gives it its number


def attach(app, shelf: Shelf, names: dict[str, str], most: int) -> Callable[[str], Awaitable[bool]]:
    """Gives vLLM's application the runs of `shelf`: /v1/models lists them, and what is returned loads one, adding it to `names`.

    That says False where there is no such run, and raises ValueError where its adapter can't be loaded. most: the highest
    rank that there is room for.
    """
    models = app.state.openai_serving_models
    models.lora_resolvers = [Resolver(shelf)]

    async def load(name: str) -> bool:
        adapter = await asyncio.to_thread(shelf.find, name)
        if not adapter:
            return False
        if (high := rank(adapter)) > most:
            raise ValueError(f"{name} has rank {high}, and there is room for {most}. Start the server again.")
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
