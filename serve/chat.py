"""A web page that sends each question to one or two models behind any OpenAI-compatible API and shows the answers side by side.

    python -m serve.chat --url http://127.0.0.1:8000/v1 --models sft dpo     # then open http://127.0.0.1:8101
    python -m serve.chat --url http://127.0.0.1:8000/sft/v1 --url2 http://127.0.0.1:8000/dpo/v1

The bearer token in the environment variable SHOESTRING_TOKEN is sent to these addresses and never to the browser: this program
makes the requests. It listens on this machine only; from elsewhere, connect with ssh -L 8101:127.0.0.1:8101 HOST.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from serve import page
from serve.guard import LOOPBACK

PAGE = Path(__file__).with_name("chat.html")
TOKEN = "SHOESTRING_TOKEN"


@dataclass(frozen=True)
class Side:
    url: str
    """An OpenAI-compatible API, up to and with /v1."""
    model: str = ""
    """The model's name there. Empty: the first one that the API lists."""

    def http(self):
        """Returns an httpx.AsyncClient for it, with the token."""
        import httpx

        token = os.environ.get(TOKEN)
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(600, connect=10),
            trust_env=urlsplit(self.url).hostname not in LOOPBACK,  # a proxy can't reach this machine's loopback
        )


def main(argv: list[str] | None = None) -> int:
    """Serves the page until Ctrl-C, then returns 0. Exits with 2 if an option is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--url", default="http://127.0.0.1:8000/v1", help="an OpenAI-compatible API (default: %(default)s)"
    )
    parser.add_argument("--url2", help="a second API to compare with")
    parser.add_argument(
        "--models", nargs="+", default=[], metavar="NAME", help="one or two models (default: the first listed)"
    )
    parser.add_argument("--port", type=int, default=8101)
    options = parser.parse_args(argv)
    from lib.runtime.refusing import refusing

    with refusing("serve.chat"):
        asked = sides(options.url, options.url2, options.models)
        page.free(options.port)
    print(f"Ask at http://127.0.0.1:{options.port} (Ctrl-C stops it)", flush=True)
    page.serve(app(asked), options.port)
    return 0


def sides(url: str, url2: str | None, models: list[str]) -> list[Side]:
    """Returns the APIs and models to compare. Raises ValueError naming the wrong option."""
    for option, address in (("--url", url), ("--url2", url2)):
        parts = urlsplit(address or url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{option}: {address!r} is not an http(s) address, such as http://127.0.0.1:8000/v1.")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                f"{option}: holds a secret or a query. Put the token into the environment variable {TOKEN}."
            )
    if len(models) > 2:
        raise ValueError(f"--models: takes one or two models, not {len(models)}.")
    urls = [url, url2] if url2 else [url] * max(1, len(models))
    names = models if len(models) == len(urls) else (models or [""]) * len(urls)
    return [Side(address.rstrip("/"), name) for address, name in zip(urls, names, strict=True)]


def app(sides: list[Side]):
    """Returns the page with its routes GET /sides and POST /ask {side, model, messages, temperature, max_tokens}, which streams
    JSON lines."""
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def listed(request):
        return JSONResponse([{"url": s.url, "model": s.model, **await models(s)} for s in sides])

    async def ask(request):
        if not page.is_json(request):
            return JSONResponse({"error": "send JSON"}, 415)
        try:
            question = await request.json()
            side = sides[int(question.pop("side"))]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
            return JSONResponse({"error": f"side: {e}"}, 400)
        return streamed(side, question)

    return page.app(PAGE, [Route("/sides", listed), Route("/ask", ask, methods=["POST"])])


def streamed(side: Side, question: dict):
    """Returns the response that streams answer() as JSON lines."""
    from starlette.responses import StreamingResponse

    async def lines():  # Starlette closes it when the browser disconnects, which also stops the model
        async with aclosing(answer(side, question)) as parts:
            async for part in parts:
                yield json.dumps(part) + "\n"

    return StreamingResponse(lines(), media_type="application/jsonl")


async def models(side: Side) -> dict:
    """Returns {"models": names} as the API lists them, or {"error": reason}."""
    import httpx

    try:
        async with side.http() as http:
            found = await http.get(f"{side.url}/models", timeout=10)
        if found.status_code == 200:
            return {"models": [m["id"] for m in found.json()["data"]]}
        return {"error": refused(found.status_code, found.text)}
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        return {"error": gone(side, e)}
    except (ValueError, KeyError, TypeError):
        return {"error": f"{side.url}/models did not return a list of models: {found.text[:300]}"}


async def answer(side: Side, question: dict) -> AsyncGenerator[dict]:
    """Yields {"text": …} as they arrive, then {"end": finish_reason}; or {"error": …} where it failed."""
    import httpx

    end = None
    try:
        async with (
            side.http() as http,
            http.stream("POST", f"{side.url}/chat/completions", json=question | {"stream": True}) as reply,
        ):
            if reply.status_code != 200:
                yield {"error": refused(reply.status_code, (await reply.aread()).decode(errors="replace"))}
                return
            async for line in reply.aiter_lines():
                if not line.startswith("data:") or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data:"))
                if "error" in event:
                    yield {"error": _message(event)}
                    return
                for choice in event["choices"][:1]:  # empty in a final event that has only the usage
                    if text := choice["delta"].get("content"):
                        yield {"text": text}
                    end = choice.get("finish_reason") or end
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        yield {"error": gone(side, e)}
        return
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        yield {"error": f"{side.url} doesn't stream in OpenAI's format: {type(e).__name__} {e}"}
        return
    yield {"end": end} if end else {"error": f"{side.url} ended the answer early (it may limit the time per request)."}


def refused(status: int, body: str) -> str:
    """Returns the status and the API's own error message."""
    try:
        message = _message(json.loads(body))
    except ValueError:
        message = body.strip()[:2000]
    return f"{status}: {message}"


def gone(side: Side, e: Exception) -> str:
    return f"{side.url} can't be reached or closed the connection: {e or type(e).__name__}"


def _message(error) -> str:
    """OpenAI sends {"error": {"message"}}; others {"error": text}, {"message"} or {"detail"}."""
    for key in ("error", "message", "detail"):
        if isinstance(error, dict) and error.get(key):
            return _message(error[key])
    return error if isinstance(error, str) else json.dumps(error)


if __name__ == "__main__":
    sys.exit(main())
