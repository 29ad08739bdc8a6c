"""The chat page: what its server forwards and what it keeps secret, the API's errors, and the page by keyboard in a real browser."""

import json
import os
import subprocess
import time
from contextlib import contextmanager

import openai
import pytest
from starlette.testclient import TestClient

from serve import chat
from serve.chat import Side
from serve.guard import Guard
from tests import warm
from tests.conftest import REPO, free_port, wait_for_port
from tests.http import http
from tests.serve.conftest import listening
from tests.serve.echo import endpoint
from tests.serve.tab import tab

SECRET = "s3cret-of-the-server"
HTML = "<img src=x onerror='window.ran=1'> <b>red</b> & green\n  blue"


@contextmanager
def busy(url: str, question: str, **headers):
    """Runs the block while a question is being answered."""
    asked = {"messages": [{"role": "user", "content": question}]}
    with http.stream("POST", f"{url}/chat/completions", json=asked, headers=headers) as reply:
        lines = reply.iter_lines()
        next(lines)
        yield


def idle(guard: Guard) -> bool:
    """Returns whether the guard becomes idle within some seconds."""
    for _ in range(100):
        if not guard.busy:
            return True
        time.sleep(0.05)
    return False


def page(*sides: Side) -> TestClient:
    return TestClient(chat.app(list(sides)), base_url="http://127.0.0.1")


def ask(client: TestClient, text: str, **more) -> list[dict]:
    """Returns the lines of one answer."""
    body = {"side": 0, "model": "echo", "messages": [{"role": "user", "content": text}], "temperature": 0} | more
    reply = client.post("/ask", json=body)
    assert reply.status_code == 200
    return [json.loads(line) for line in reply.text.splitlines()]


@pytest.mark.parametrize(
    ("url2", "models", "found"),
    [
        (None, [], [Side("http://a/v1")]),
        (None, ["x", "y"], [Side("http://a/v1", "x"), Side("http://a/v1", "y")]),
        ("http://b/v1/", [], [Side("http://a/v1"), Side("http://b/v1")]),
        ("http://b/v1", ["x"], [Side("http://a/v1", "x"), Side("http://b/v1", "x")]),
        ("http://b/v1", ["x", "y"], [Side("http://a/v1", "x"), Side("http://b/v1", "y")]),
    ],
)
def test_who_is_asked(url2, models, found):
    assert chat.sides("http://a/v1/", url2, models) == found


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--url", "127.0.0.1:8000"], "--url: '127.0.0.1:8000' is not an http"),
        (["--url2", "http://:8000/v1"], "--url2: 'http://:8000/v1' is not an http"),
        (["--port", "99999"], "--port: must be from 1 to 65535, is 99999"),
        (["--url", "http://me:pass@x/v1"], "--url: holds a secret or a query"),
        (["--models", "a", "b", "c"], "--models: takes one or two models, not 3"),
    ],
)
def test_wrong_requests(options, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        chat.main(options)
    assert stopped.value.code == 2 and says in capsys.readouterr().err


def test_the_answer_streams_and_the_token_stays_on_the_server(monkeypatch):
    monkeypatch.setenv("SHOESTRING_TOKEN", SECRET)
    with listening(endpoint(SECRET)) as address:
        client = page(Side(f"{address}/v1"))
        listed = client.get("/sides")
        assert listed.json() == [{"url": f"{address}/v1", "model": "", "models": ["echo"]}]
        lines = ask(client, HTML)
    assert [part["text"] for part in lines[:-1]] == list(HTML) and lines[-1] == {"end": "stop"}
    assert SECRET not in client.get("/").text + listed.text + str(lines)


def test_errors_are_the_apis_own_words(monkeypatch):
    monkeypatch.delenv("SHOESTRING_TOKEN", raising=False)
    with (
        listening(endpoint()) as address,
        listening(endpoint(SECRET)) as closed,
        listening(endpoint(at_once=1, queue=0)) as full,
    ):
        open_, guarded, html = page(Side(f"{address}/v1")), page(Side(f"{closed}/v1")), page(Side(f"{address}/html"))
        nowhere = page(Side(f"http://127.0.0.1:{free_port()}/v1"))
        assert ask(guarded, "x") == [{"error": "401: The bearer token is missing or wrong."}]
        assert guarded.get("/sides").json()[0]["error"].startswith("401: The bearer token")
        assert ask(open_, "x", model="ecko") == [
            {"error": "404: There is no model 'ecko' here. Nearest: echo. It has echo."}
        ]
        assert ask(open_, "error")[-1] == {"error": "out of memory"}
        assert ask(open_, "break off")[-1]["error"].endswith(
            "ended the answer early (it may limit the time per request)."
        )
        assert "can't be reached or closed the connection" in ask(nowhere, "x")[0]["error"]
        assert "can't be reached" in nowhere.get("/sides").json()[0]["error"]
        assert "ended the answer early" in ask(html, "x")[0]["error"]
        assert "did not return a list of models: <h1>hello</h1>" in html.get("/sides").json()[0]["error"]
        with busy(f"{full}/v1", "forever"):
            (refused,) = ask(page(Side(f"{full}/v1")), "x")
        assert refused["error"].startswith("429: 1 requests are under way or waiting here")


def test_only_this_page_may_ask():
    client = page(Side("http://127.0.0.1:9/v1"))
    body = json.dumps({"side": 0, "messages": []})
    assert client.post("/ask", content=body, headers={"content-type": "text/plain"}).status_code == 415
    assert client.get("/sides", headers={"host": "evil.example"}).status_code == 400
    for wrong in ({}, {"side": 1}, {"side": "x"}, []):
        assert client.post("/ask", json=wrong).status_code == 400


def test_who_stops_the_answer_stops_the_model():
    guard = endpoint()
    with listening(guard) as address, listening(chat.app([Side(f"{address}/v1")])) as mine:
        body = {"side": 0, "model": "echo", "messages": [{"role": "user", "content": "forever"}]}
        with http.stream("POST", f"{mine}/ask", json=body) as reply:
            lines = reply.iter_lines()
            assert json.loads(next(lines)) == {"text": "f"} and guard.busy == 1
        assert idle(guard)


def direct(url: str, *messages: str, max_tokens: int = 8) -> str:
    """Returns the run's answer to OpenAI's client; messages alternate between user and assistant."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(messages)]
    api = openai.OpenAI(base_url=url, api_key="-", max_retries=0, timeout=60)
    return api.chat.completions.create(model="sft", messages=turns, max_tokens=max_tokens, temperature=0).choices[0].message.content  # fmt: skip


@pytest.mark.slow
def test_a_served_run(url):
    lines = ask(page(Side(url)), "what is red?", model="sft", max_tokens=8)
    assert lines[-1] == {"end": "length"}
    assert "".join(part["text"] for part in lines[:-1]) == direct(url, "what is red?")
    (refused,) = ask(page(Side(url)), "x", model="sff")
    assert refused["error"] == "404: There is no model 'sff' here. Nearest: sft. It has sft."


@contextmanager
def _server(*options: str):
    port = free_port()
    command = [warm.python(), "-m", "serve.chat", "--port", str(port), *options]
    process = subprocess.Popen(
        command, cwd=REPO, stdout=subprocess.PIPE, text=True, env=os.environ | {"SHOESTRING_TOKEN": SECRET}
    )
    try:
        wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_by_keyboard_in_a_browser(url, browser, tmp_path):
    """A served run beside an echo model that needs a token: two turns, HTML, stop, errors, a new conversation."""
    guard = endpoint(SECRET, at_once=1, queue=0)
    with (
        listening(guard) as address,
        _server("--url", url, "--url2", f"{address}/v1", "--models", "sft", "echo") as mine,
        tab(browser, mine, tmp_path / "a") as page,
    ):
        last = "[...document.querySelectorAll('#side{} .{}')].at(-1)?.textContent"

        def send(text: str) -> None:
            page.value("$('question').focus()")
            page.type(text)
            page.key("Enter")

        def settled() -> bool:
            return page.wait("stopping === null")

        def shown(side: int, kind: str) -> str:
            return page.value(last.format(side, kind))

        assert page.wait("sides.length === 2")
        assert page.value("[...document.querySelectorAll('.model')].map(m => m.value).join()") == "sft,echo"
        page.value("$('max_tokens').value = 8")

        send("what is red?")
        assert settled()
        first = direct(url, "what is red?")
        assert shown(0, "assistant") == first and shown(1, "assistant") == "what is red?"
        assert shown(0, "note").startswith("cut at max_tokens, ") and shown(1, "note").startswith("stop, ")

        send(HTML)  # a second turn; text is shown as text on both sides, whoever wrote it
        assert settled()
        assert shown(0, "assistant") == direct(url, "what is red?", first, HTML)
        assert shown(1, "assistant") == shown(1, "user") == HTML
        assert page.value("document.querySelectorAll('.turn *').length") == 0 and page.value("'ran' in window") is False

        page.type("a")
        page.key("Enter", modifiers=8, text="\r", windowsVirtualKeyCode=13)
        page.type("b")
        assert page.value("$('question').value") == "a\nb"
        page.value("$('question').value = ''")

        send("forever")  # one of the two continues until it is stopped; its text so far is kept
        assert page.wait(last.format(1, "assistant") + ".startsWith('forever...')")
        assert page.value("$('stop').disabled") is False
        page.key("Escape")
        assert settled() and shown(1, "note").startswith("stopped, ")
        assert page.value("sides[1].messages.length") == 6
        assert idle(guard)

        page.value("sides[0].model.value = 'sff'")  # a missing model beside an existing one
        send("again")
        assert settled() and shown(0, "error") == "404: There is no model 'sff' here. Nearest: sft. It has sft."
        assert shown(1, "assistant") == "again" and page.value("sides[0].messages.length") == 6

        page.value("sides[0].model.value = 'sft'")
        with busy(f"{address}/v1", "forever", authorization=f"Bearer {SECRET}"):
            send("and now?")
            assert settled() and shown(1, "error").startswith("429: 1 requests are under way or waiting here")

        page.value("$('again').click()")
        assert page.value("document.querySelectorAll('.turn').length + sides[0].messages.length") == 0
        assert page.value("document.documentElement.outerHTML.includes('s3cret')") is False
        assert page.errors == []
    with _server("--url", f"{address}/v1") as mine, tab(browser, mine, tmp_path / "b") as page:  # the endpoint is gone
        assert page.wait("sides.length === 1") and "can't be reached" in page.value(last.format(0, "error"))
        page.value("$('question').focus()")
        page.type("hello?")
        page.key("Enter")
        assert page.wait("stopping === null && $('question').value === 'hello?'")  # ready to be sent again
        assert "can't be reached" in page.value(last.format(0, "error")) and page.errors == []
