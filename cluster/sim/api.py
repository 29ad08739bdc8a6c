"""The common parts of all endpoints of both markets: call counts, injected faults, keys, rate limits, strict bodies."""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from cluster.sim.rental import Rental
from cluster.sim.world import World

RETIRED = {"404html": (404, True), "404json": (404, False), "410html": (410, True), "410json": (410, False)}
"""Replies of an endpoint that a vendor has retired: {name: (status, whether the body is a web page)}."""
PAGE = "<!DOCTYPE html>\n<html><head><title>{0}</title></head>\n<body><h1>{0}</h1>\n<hr>nginx</body></html>\n"


class Strict(BaseModel):
    """A request's body, without unknown fields and without type coercion, except that ints are valid floats."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Refusal(Exception):
    """An error reply."""

    def __init__(self, status: int, kind: str, message: str, errors: list[str] | None = None):
        super().__init__(message)
        self.status, self.kind, self.message, self.errors = status, kind, message, errors


@dataclass
class Call:
    """One authenticated request."""

    request: Request
    body: object
    """The parsed JSON body; {} if there is none."""
    only: Rental | None
    """The rental whose own key was used; None: the account's key."""

    def rental(self, world: World, market: str) -> Rental:
        """Returns the rental of the path's id. Raises Refusal."""
        rental = world.rentals.get(self.request.path_params["id"])
        if not rental or not rental.alive or rental.machine.market != market:
            detail = {"vast": f"Instance {self.request.path_params['id']} not found.", "runpod": "pod not found"}
            raise Refusal(404, "no_such_instance", detail[market])
        if self.only not in (None, rental):
            raise Refusal(403, "forbidden", "this key is of another instance")
        return rental


def parse(model: type[BaseModel], body: object) -> BaseModel:
    """Returns the body as a `model`. Raises Refusal 400, which RunPod's API turns into 422."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        errors = [f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors()]
        raise Refusal(400, "invalid_args", "; ".join(errors), errors) from None


class Api(ABC):
    """The endpoints of one market."""

    market: str
    no_key = 401
    """Status of the reply to an unknown key."""
    boxes_may: frozenset[str] = frozenset()
    """Endpoints that a box's own key may use."""

    def __init__(self, world: World):
        self.world = world
        self.routes: list[Route] = []
        self.faults: dict[str, list[str]] = defaultdict(list)
        """{endpoint, such as "PUT /api/v0/asks/{id}/": faults of its next calls (faults.API_FAULTS)}"""
        self.retired: dict[str, str] = {}
        """{retired endpoint: its reply, one of RETIRED}"""
        self._times: dict[tuple[str, str], deque[float]] = defaultdict(deque)

    def add(
        self, method: str, path: str, handler: Callable[[Call], Awaitable[Response]], calls: int, seconds: float
    ) -> None:
        """Adds an endpoint that allows at most `calls` in `seconds`, per key."""
        endpoint = f"{method} {path}"

        async def serve(request: Request) -> Response:
            fault = self.faults[endpoint].pop(0) if self.faults[endpoint] else ""
            fault = self.retired.get(endpoint, fault)
            if fault not in ("", "lost"):
                response = await self._broken(fault)
            else:
                response = await self._serve(endpoint, handler, calls, seconds, request)
                response = PlainTextResponse("bad gateway", 502) if fault else response
            self.world.calls[f"{endpoint} {response.status_code}"] += 1
            return response

        self.routes.append(Route(path, serve, methods=[method]))

    async def _broken(self, fault: str) -> Response:
        if fault == "timeout":
            await asyncio.sleep(3600)
        if fault == "json":
            return Response('{"offers": [{"id": 1, "gpu', media_type="application/json")
        if fault == "shape":
            return JSONResponse({"unexpected": True})
        if fault == "429":
            return self.too_many(1.0)
        if fault in ("429bare", "429wait"):
            return PlainTextResponse("slow down", 429, {"Retry-After": "1"} if fault == "429wait" else {})
        if fault == "html":
            return HTMLResponse(PAGE.format("502 Bad Gateway"), 502)
        if fault in RETIRED:
            status, page = RETIRED[fault]
            title = "This API has been retired" if status == 410 else "The requested resource was not found"
            return HTMLResponse(PAGE.format(title), status) if page else JSONResponse({"message": title}, status)
        return PlainTextResponse("upstream error", int(fault))

    async def _serve(self, endpoint, handler, calls: int, seconds: float, request: Request) -> Response:
        try:
            key = self.key(request)
            only = next((r for r in self.world.alive(self.market) if r.key == key), None)
            if key != self.world.keys[self.market] and not only:
                return self.refuse(Refusal(self.no_key, "auth_error", "Invalid user key"))
            if wait := self._wait(endpoint, key, calls, seconds / self.world.pace):
                return self.too_many(wait)
            if only and endpoint not in self.boxes_may:
                raise Refusal(403, "forbidden", "an instance's key may only look at, stop and destroy that instance")
            raw = await request.body()
            try:
                body = json.loads(raw or b"{}")
            except ValueError:
                raise Refusal(400, "invalid_args", "the body is not JSON") from None
            return await handler(Call(request, body, only))
        except Refusal as refusal:
            return self.refuse(refusal)

    def _wait(self, endpoint: str, key: str, calls: int, seconds: float) -> float:
        """Returns the seconds until the next call is allowed. 0: this call is allowed, and counted."""
        times, now = self._times[endpoint, key], time.monotonic()
        while times and times[0] <= now - seconds:
            times.popleft()
        if len(times) >= calls:
            return times[0] + seconds - now
        times.append(now)
        return 0.0

    def key(self, request: Request) -> str:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        return key if scheme == "Bearer" else ""

    @abstractmethod
    def refuse(self, refusal: Refusal) -> Response:
        """Returns the error reply in this market's format."""

    @abstractmethod
    def too_many(self, wait: float) -> Response:
        """Returns this market's 429. wait: seconds until the next call is allowed."""
