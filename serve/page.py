"""A page for the people at this machine: it listens on loopback only, and heeds nothing that another site's page sends."""

from __future__ import annotations

from pathlib import Path


def free(port: int) -> None:
    """Raises ValueError where something listens already, or nothing can."""
    import socket

    if not 0 < port < 65536:
        raise ValueError(f"--port: must be from 1 to 65535, is {port}.")
    with socket.socket() as s:
        if s.connect_ex(("127.0.0.1", port)) == 0:
            raise ValueError(f"--port: something listens on {port} already. Take another.")


def app(page: Path, routes: list):
    """The file `page` at /, with the Starlette routes that it calls."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse
    from starlette.routing import Route

    async def shown(request):
        return HTMLResponse(page.read_text(encoding="utf-8"))

    # A page elsewhere could point its own name at 127.0.0.1.
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    return Starlette(routes=[Route("/", shown), *routes], middleware=[hosts])


def is_json(request) -> bool:
    """Whether a POST says it is JSON, which no form of another site can."""
    return request.headers.get("content-type", "").split(";")[0] == "application/json"


def serve(app, port: int) -> None:
    """Until Ctrl-C."""
    import uvicorn

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
