"""Serves a web page to users of this machine: it listens on loopback only and ignores requests from other sites' pages."""

from __future__ import annotations

from pathlib import Path


def free(port: int) -> None:
    """Raises ValueError if the port is taken or invalid."""
    import socket

    if not 0 < port < 65536:
        raise ValueError(f"--port: must be from 1 to 65535, is {port}.")
    with socket.socket() as s:
        if s.connect_ex(("127.0.0.1", port)) == 0:
            raise ValueError(f"--port: something listens on {port} already. Take another.")


SCRIPT = Path(__file__).with_name("page.js")


def app(page: Path, routes: list):
    """Returns an application that serves the file `page` at /, the functions that pages share at /page.js, and the Starlette routes that it
    calls."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import FileResponse, HTMLResponse
    from starlette.routing import Route

    async def shown(request):
        return HTMLResponse(page.read_text(encoding="utf-8"))

    async def shared(request):
        return FileResponse(SCRIPT, media_type="text/javascript")

    # Against DNS rebinding: another site could resolve its own name to 127.0.0.1.
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    return Starlette(routes=[Route("/", shown), Route("/page.js", shared), *routes], middleware=[hosts])


def is_json(request) -> bool:
    """Returns whether a POST has the content type JSON, which another site's form can't send."""
    return request.headers.get("content-type", "").split(";")[0] == "application/json"


def serve(app, port: int) -> None:
    """Serves until Ctrl-C."""
    import uvicorn

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
