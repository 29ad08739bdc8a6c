"""The guard in front of an engine whose answers are known; without Ray and without a model."""

import asyncio
import hashlib
import json
import re
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from serve.engines import Engine
from serve.guard import Guard
from serve.keeper import Keeper
from serve.serving import Plan, parse
from tests.serve.conftest import keeping, well

CHAT = {"model": "dpo", "messages": [{"role": "user", "content": "hello"}]}


async def chat(request):
    asked = await request.json()
    await asyncio.sleep(asked.get("sleep", 0))
    if asked.get("stream"):

        async def lines():
            for i in range(100):
                yield f"data: {i}\n\n"
                await asyncio.sleep(0.02)

        return StreamingResponse(lines())
    return JSONResponse(asked)


def guard(token: str | None = None, lacks=(), **settings) -> Guard:
    app = Starlette(routes=[
        Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/models", lambda r: JSONResponse({"data": []})),
        Route("/health", lambda r: JSONResponse({})),
    ])  # fmt: skip
    digest = hashlib.sha256(token.encode()).hexdigest() if token else None
    plan = Plan(parse({"run": "runs/dpo", **settings}), "/runs/dpo", {}, False, None, digest)
    return Guard(plan, keeping(Engine(app, "the engine", {"dpo": "/where/dpo", "lora": "lora"}, lacks, well)))


def ask(app: Guard, *bodies, client="127.0.0.1", **headers) -> list[httpx.Response]:
    """POSTs all bodies at the same time."""

    async def all_():
        transport = httpx.ASGITransport(app=app, client=(client, 1), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers) as http:
            posts = [
                http.post("/v1/chat/completions", content=b if isinstance(b, bytes) else json.dumps(b)) for b in bodies
            ]
            return await asyncio.gather(*posts)

    return asyncio.run(all_())


def test_the_engine_gets_its_own_name_of_the_model():
    (reply,) = ask(guard(), CHAT | {"max_completion_tokens": 3})
    assert reply.json() == {"model": "/where/dpo", "messages": CHAT["messages"], "max_tokens": 3}
    assert ask(guard(), {"messages": []})[0].json()["model"] == "/where/dpo"  # the run, if no model is named


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not JSON"),
        (b"[1]", 400, "JSON object"),
        (b"[" * 100_000, 400, "more than 100 levels"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, 400, "more than 100 levels"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", 400, "not JSON"),
        (b'{"seed": 18446744073709551616}', 400, "seed: has a number beyond 64 bits"),
        (b'{"temperature": 1e999}', 400, "temperature: has a number beyond 64 bits"),
        (b'{"temperature": NaN}', 400, "NaN is not a JSON number"),
        (b'{"prompt": "\\ud800"}', 400, "prompt: has an unpaired surrogate"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "messages: has an unpaired surrogate"),
        (b'{"\\udfff": 1}', 400, "an unpaired surrogate"),
        (b'{"prompt": "\xff"}', 400, "not JSON: .*utf-8"),
        (b"x" * 3_000_000, 413, r"larger than max_body_mb \(1 MB\)"),
        (CHAT | {"model": "dop"}, 404, "no model 'dop' here.*dpo.*It has dpo, lora"),
        (CHAT | {"logprobs": True, "n": 2}, 400, "logprobs, n: the engine doesn't support that; vLLM does"),
    ],
)
def test_requests_that_are_refused(body, status, says):
    (reply,) = ask(guard(lacks=("logprobs", "n"), max_body_mb=1), body)
    assert reply.status_code == status and reply.json()["error"]["code"] == status
    assert re.search(says, reply.json()["error"]["message"])


def test_a_run_that_is_loaded_when_it_is_asked_for():
    app, asked = guard(), []

    async def load(name):
        asked.append(name)
        if name == "broken":
            raise ValueError("LoRA adapter 'broken' was found but could not be loaded.")
        if name == "later":
            app.keeper.engine.names[name] = name
        return name == "later"

    app.keeper.engine.load, app.keeper.engine.shelf = load, SimpleNamespace(names=lambda: {"later": "/runs/later"})
    replies = [ask(app, CHAT | {"model": name})[0] for name in ("later", "later", "latr", "broken", ["later"])]
    assert [r.status_code for r in replies] == [200, 200, 404, 400, 404]
    assert asked == ["later", "latr", "broken", "['later']"]
    told = replies[2].json()["error"]["message"]
    assert told == "There is no model 'latr' here. Nearest: later. It has dpo, lora, later."
    assert "could not be loaded" in replies[3].json()["error"]["message"]


def test_what_asks_for_nothing_is_not_refused():
    (reply,) = ask(guard(lacks=("logprobs", "n")), CHAT | {"logprobs": False, "n": 1})
    assert reply.status_code == 200


def test_a_flood_is_told_to_come_again():
    replies = ask(guard(at_once=3, queue=2), *[CHAT | {"sleep": 0.2}] * 10)
    codes = [r.status_code for r in replies]
    assert codes.count(200) == 5 and codes.count(429) == 5
    assert {r.headers["retry-after"] for r in replies if r.status_code == 429} == {"1"}


def test_waiting_requests_run_in_turn_and_at_most_at_once():
    app, most, inside, order = guard(at_once=3), 0, 0, []
    engine = app.keeper.engine.app

    async def counting(scope, receive, send):
        nonlocal most, inside
        inside += 1
        most = max(most, inside)
        order.append(json.loads((await receive())["body"])["number"])
        await asyncio.sleep(0.02)
        inside -= 1
        await JSONResponse({})(scope, receive, send)

    app.keeper.engine.app = counting
    assert [r.status_code for r in ask(app, *[CHAT | {"number": i} for i in range(15)])] == [
        200
    ] * 15  # 3 answered and 4 times 3 waiting
    assert most == 3 and order == list(range(15)) and engine is not counting
    assert {r.status_code for r in ask(guard(at_once=2, queue=0), *[CHAT | {"sleep": 0.2}] * 3)} == {200, 429}


def test_an_engine_that_died_is_replaced_and_meanwhile_refuses():
    """Requests in progress and new ones get 503 with the time that a start takes; then requests are answered again."""

    async def life():
        dead, closed = False, []

        async def check():
            if dead:
                raise RuntimeError("the engine process is gone")

        async def chat(request):
            while not dead:
                await asyncio.sleep(0.01)
            return JSONResponse({"error": "EngineDeadError"}, 500)

        async def successor():
            await started.wait()
            return Engine(app, "the engine", {"dpo": "dpo"}, (), well)

        guarded, started = guard(), asyncio.Event()
        keeper, app = guarded.keeper, guarded.keeper.engine.app
        dying = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
        keeper.engine = Engine(dying, "the engine", {"dpo": "dpo"}, (), check, lambda: closed.append(True))
        keeper.start, keeper.took = successor, 40
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=guarded), base_url="http://x") as http:
            under_way = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
            await asyncio.sleep(0.05)
            dead = True
            replies = [await under_way, await http.post("/v1/chat/completions", json=CHAT), await http.get("/health")]
            await keeper.check()  # Serve calls this: it has no reason to replace the replica
            started.set()
            await keeper.replacing
            return replies, closed, await http.post("/v1/chat/completions", json=CHAT)

    replies, closed, after = asyncio.run(life())
    assert [r.status_code for r in replies] == [503] * 3 and closed == [True]
    assert {int(r.headers["retry-after"]) for r in replies} <= {39, 40}
    assert replies[0].json()["error"]["message"] == "The engine stopped and is being restarted. Try again in 40 s."
    assert after.status_code == 200


def test_an_engine_that_cannot_be_replaced_has_serve_replace_the_replica():
    async def life():
        async def check():
            raise RuntimeError("dead")

        async def successor():
            raise MemoryError("no room for another")

        keeper = Keeper(successor)
        keeper.engine = Engine(None, "the engine", {}, (), check)
        await keeper.check()
        await asyncio.wait([keeper.replacing])
        await keeper.check()

    with pytest.raises(MemoryError, match="no room for another"):
        asyncio.run(life())


def test_room_comes_back_after_errors_too():
    app = guard(at_once=1)
    for body in (b"{", CHAT, CHAT | {"model": "x"}, CHAT):
        ask(app, body)
    assert app.busy == 0 and ask(app, CHAT)[0].status_code == 200


def test_time_is_limited():
    (reply,) = ask(guard(timeout_s=0.1), CHAT | {"sleep": 5})
    assert reply.status_code == 504 and "timeout_s (0.1 s)" in reply.json()["error"]["message"]
    app = guard(timeout_s=0.3)
    ask(app, CHAT | {"stream": True})  # the stream is cut
    assert app.busy == 0


def test_token():
    app = guard(token="s3cret")
    assert [ask(app, CHAT, **h)[0].status_code for h in ({}, {"authorization": "Bearer no"}, {"authorization": "Bearer s3cret"})] == [401, 401, 200]  # fmt: skip


def test_without_a_token_only_this_machine_is_answered():
    assert ask(guard(), CHAT, client="10.0.0.7")[0].status_code == 403
    assert ask(guard(token="t"), CHAT, client="10.0.0.7", authorization="Bearer t")[0].status_code == 200


def test_other_paths():
    async def get(path):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=guard(token="t")), base_url="http://x") as http:
            return (await http.get(path)).status_code

    assert asyncio.run(get("/health")) == 200 and asyncio.run(get("/v1/models")) == 401


def test_a_client_that_goes_away_gives_its_room_back():
    app, sent = guard(at_once=1), []
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": [],
        "client": ("127.0.0.1", 1),
    }
    asyncio.run(app(scope, receive, send))
    assert app.busy == 0 and sent[0]["status"] == 400
