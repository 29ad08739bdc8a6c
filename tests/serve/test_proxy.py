"""serve/proxy.py: a client's reply if a replica dies before, between and after the parts of its answer."""

import asyncio

import httpx
import pytest

from serve.proxy import Unanswered

JSON = [(b"content-type", b"application/json"), (b"content-length", b"2")]
START = {"type": "http.response.start", "status": 200, "headers": JSON}
BODY = {"type": "http.response.body", "body": b"{}"}
PLAIN = {"type": "http.response.start", "status": 500, "headers": [(b"content-type", b"text/plain")]}


async def reply(*messages) -> httpx.Response:
    """Returns a client's reply if the proxy sends these messages."""

    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(Unanswered(app)), base_url="http://x") as client:
        return await client.post("/v1/chat/completions")


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([], id="nothing"),
        pytest.param([PLAIN, BODY], id="the proxy's own 500"),
        pytest.param([START], id="headers without a body"),
        pytest.param([START, PLAIN, BODY], id="headers and then the proxy's own 500"),
    ],
)
def test_an_answer_that_did_not_begin_is_503(messages):
    said = asyncio.run(reply(*messages))
    assert said.status_code == 503 and said.headers["retry-after"] == "5"
    assert said.json()["error"]["message"].startswith("No replica could answer")


def test_a_whole_answer_passes():
    said = asyncio.run(reply(START, BODY))
    assert said.status_code == 200 and said.json() == {}
