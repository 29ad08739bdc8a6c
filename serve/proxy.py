"""Makes Serve's HTTP proxy answer 503 with Retry-After, as an OpenAI error object, when no replica could answer.

By default it answers 500 "Internal Server Error" if a replica died with the request, closes the connection after the headers if
the replica died before the body, and answers 404 while the application is starting or stopping.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.responses import JSONResponse

RETRY_S = 5


def middlewares() -> list[Middleware]:
    """For RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH."""
    return [Middleware(Unanswered)]


class Unanswered:
    """ASGI middleware. Replaces the proxy's own plain-text errors; replicas' replies (JSON or a stream) pass unchanged.

    Headers are held until the first part of the body, since they arrive separately and a replica may die in between.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or "/v1/" not in scope["path"]:
            return await self.app(scope, receive, send)
        start, replaced, begun = None, False, False

        async def sending(message):
            nonlocal start, replaced, begun
            if message["type"] == "http.response.start":
                plain = dict(message.get("headers", ())).get(b"content-type", b"").startswith(b"text/plain")
                start, replaced = message, plain and message["status"] in (404, 500, 503)
            elif not replaced:
                if not begun:
                    begun = True
                    await send(start)
                await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            if not begun:
                await _refusal()(scope, receive, send)


def _refusal() -> JSONResponse:
    reason = "No replica could answer: one stopped, or the application is starting or stopping."
    error = {"message": f"{reason} Try again in {RETRY_S} s.", "type": "server_error", "code": 503}
    return JSONResponse({"error": error}, 503, {"Retry-After": str(RETRY_S)})
