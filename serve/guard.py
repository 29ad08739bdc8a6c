"""Guards an engine's HTTP application: checks token, size, JSON, model name and load, limits the time, and handles a dead engine.

Every refusal is an OpenAI error object. 429, 503 and 504 may be retried; the others name what to change.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac

from starlette.responses import JSONResponse

from serve import body as bodies
from serve.keeper import Keeper
from serve.serving import Plan

LOOPBACK = ("127.0.0.1", "::1", "localhost")
OPEN = ("/health", "/ping")
"""Paths that need no token."""


class Refusal(Exception):
    def __init__(self, status: int, message: str, headers: dict | None = None):
        kind = "invalid_request_error" if status < 429 else "server_error"
        body = {"error": {"message": message, "type": kind, "code": status}}
        self.response = JSONResponse(body, status, headers)


class Guard:
    """An ASGI application around the engine's. busy: requests in it, including those waiting their turn."""

    def __init__(self, planned: Plan, keeper: Keeper):
        self.planned, self.serving, self.keeper, self.busy = planned, planned.serving, keeper, 0
        self.turn = asyncio.Semaphore(self.serving.at_once)

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.keeper.engine.app(scope, receive, send)
        begun = died = False

        async def sending(message):
            nonlocal begun, died
            failed = message["type"] == "http.response.start" and message["status"] >= 500
            died = died or (failed and not await self.keeper.alive())
            if not died:  # otherwise the engine's own error is replaced by the 503 below
                begun = True
                await send(message)

        try:
            if scope["path"] not in OPEN:
                self._token(scope)
            if scope["method"] != "POST":
                await self._engine().app(scope, receive, sending)
            else:
                await self._post(scope, receive, sending)
            if died:
                raise self._down()
        except TimeoutError:
            if begun:
                raise  # the stream ends here; it is too late to send an error
            late = Refusal(504, f"The answer took longer than timeout_s ({self.serving.timeout_s:g} s).")
            await late.response(scope, receive, send)
        except Refusal as e:
            await e.response(scope, receive, send)
        except Exception:  # any engine error: re-raised while the engine is alive, 503 if it is dead
            if begun or await self.keeper.alive():
                raise
            await self._down().response(scope, receive, send)

    async def _post(self, scope, receive, send) -> None:
        s = self.serving
        if self.busy >= s.at_once + s.waiting:
            reason = f"{self.busy} requests are under way or waiting here, the most that at_once and queue allow."
            raise Refusal(429, f"{reason} Try again in a second.", {"Retry-After": "1"})
        self.busy += 1
        try:
            async with asyncio.timeout(s.timeout_s):
                asked = await self._read(scope, receive)
                async with self.turn:
                    body = await self._asked(asked)
                    about = {b"content-length": str(len(body)).encode(), b"content-type": b"application/json"}
                    headers = [(k, v) for k, v in scope["headers"] if k not in about]
                    scope = scope | {"headers": [*headers, *about.items()]}
                    await self._engine().app(scope, _again(body, receive), send)
        finally:
            self.busy -= 1

    def _engine(self):
        if not self.keeper.engine:
            raise self._down()
        return self.keeper.engine

    def _down(self) -> Refusal:
        wait = self.keeper.wait()
        return Refusal(
            503, f"The engine stopped and is being restarted. Try again in {wait} s.", {"Retry-After": str(wait)}
        )

    def _token(self, scope) -> None:
        wanted = self.planned.token_sha256
        if not wanted:
            host = (scope.get("client") or ("127.0.0.1",))[0]
            if host not in LOOPBACK:
                env = self.serving.token_env
                raise Refusal(403, f"Without a token, only this machine is answered. Set {env} on the serving machine.")
            return
        given = dict(scope["headers"]).get(b"authorization", b"").removeprefix(b"Bearer ")
        if not hmac.compare_digest(hashlib.sha256(given).hexdigest(), wanted):
            raise Refusal(401, "The bearer token is missing or wrong.", {"WWW-Authenticate": "Bearer"})

    async def _body(self, scope, receive) -> bytes:
        most, parts, size = int(self.serving.max_body_mb * 2**20), [], 0
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        too_large = Refusal(413, f"The request is larger than max_body_mb ({self.serving.max_body_mb:g} MB).")
        if announced.isdigit() and int(announced) > most:
            raise too_large
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "The client disconnected before it had sent the whole request.")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise too_large
            if not message.get("more_body"):
                return b"".join(parts)

    async def _read(self, scope, receive) -> dict:
        try:
            return bodies.read(await self._body(scope, receive))
        except ValueError as e:
            raise Refusal(400, str(e)) from None

    async def _asked(self, asked: dict) -> bytes:
        """Returns the request with the engine's own name of the model. Raises Refusal if it can't be answered."""
        engine = self._engine()
        names = engine.names
        model = str(asked.get("model") or next(iter(names)))
        if model not in names:
            await self._load(engine, model)
        if asked.get("max_completion_tokens") is not None:  # transformers reads only the older name
            asked["max_tokens"] = asked.pop("max_completion_tokens")
        one = {k for k in ("n", "best_of") if asked.get(k) == 1}
        if lacking := [k for k in engine.lacks if asked.get(k) not in (None, False) and k not in one]:
            raise Refusal(400, f"{', '.join(lacking)}: {engine.title} doesn't support that; vLLM does (engine: vllm).")
        return bodies.write(asked | {"model": names[model]})

    async def _load(self, engine, model: str) -> None:
        """Has the engine load the adapter of this name. Raises Refusal if there is none."""
        try:
            if engine.load and await engine.load(model):
                return
        except ValueError as e:
            raise Refusal(400, str(e)) from None
        from lib.errors import nearest

        shelf = await asyncio.to_thread(engine.shelf.names) if engine.shelf else {}
        known = list(dict.fromkeys([*engine.names, *shelf]))
        raise Refusal(404, f"There is no model {model!r} here.{nearest(model, known)} It has {', '.join(known)}.")


def _again(body: bytes, receive):
    """Returns a receive that replays the body, which was read already, then later messages (such as a disconnect)."""
    given = False

    async def replay():
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
