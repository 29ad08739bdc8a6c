"""A model that streams the last message back, behind the guard that protects every engine."""

import asyncio
import hashlib
import json

from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from serve.engines import Engine
from serve.guard import Guard
from serve.serving import Plan, parse
from tests.serve.conftest import keeping, well


async def say_again(request):
    """Streams the last message back by characters; "break off" stops in the middle, "forever" never ends."""
    asked = await request.json()
    text = asked["messages"][-1]["content"]

    async def lines():
        for c in text:
            yield f"data: {json.dumps({'choices': [{'delta': {'content': c}, 'finish_reason': None}]})}\n\n"
            await asyncio.sleep(0.05 if text == "slow" else 0)
        while text == "forever":
            await asyncio.sleep(0.05)
            yield f"data: {json.dumps({'choices': [{'delta': {'content': '.'}}]})}\n\n"
        if text == "error":
            yield f"data: {json.dumps({'error': {'message': 'out of memory'}})}\n\n"
        elif text != "break off":
            yield f"data: {json.dumps({'choices': [{'delta': {}, 'finish_reason': 'stop'}]})}\n\ndata: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


def endpoint(token: str | None = None, **settings) -> Guard:
    """The model "echo" behind the guard that protects every engine."""
    app = Starlette(routes=[
        Route("/v1/chat/completions", say_again, methods=["POST"]),
        Route("/v1/models", lambda r: JSONResponse({"data": [{"id": "echo"}]})),
        Route("/html/models", lambda r: PlainTextResponse("<h1>hello</h1>")),
        Route("/html/chat/completions", lambda r: PlainTextResponse("<h1>hello</h1>"), methods=["POST"]),
    ])  # fmt: skip
    digest = hashlib.sha256(token.encode()).hexdigest() if token else None
    plan = Plan(parse({"run": "runs/echo", **settings}), "/runs/echo", {}, False, None, digest)
    return Guard(plan, keeping(Engine(app, "the engine", {"echo": "echo"}, (), well)))
