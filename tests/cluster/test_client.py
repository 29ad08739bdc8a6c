"""The HTTP client against a loopback server with prescribed replies."""

import json
import logging
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import BaseModel

from cluster.market import http
from cluster.market.base import MarketError, Refused, Taken, Unreachable, Unsure
from cluster.market.http import Client
from cluster.market.registry import MARKETS

KEY = "very-secret-key-0123456789"


class Reply(BaseModel):
    price: float


class Clock:
    """Time that passes only during sleeps of the thread that made it. Other threads may still be ending the rentals of an earlier test."""

    def __init__(self):
        self.now, self.slept, self.thread = 0.0, [], threading.get_ident()

    def sleep(self, seconds: float) -> None:
        if threading.get_ident() != self.thread:
            time.sleep(seconds)
            return
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(http, "sleep", clock.sleep)
    monkeypatch.setattr(http, "clock", lambda: clock.now)
    return clock


@contextmanager
def serving(*answers):
    """Serves these replies, (status, body[, headers]) or "hang" or "drop"; the last one is repeated forever.

    Yields (its address, the received requests as (method, path, key))."""
    left, got, released = list(answers), [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            got.append((self.command, self.path, self.headers["Authorization"]))
            now = left.pop(0) if len(left) > 1 else left[0]
            if now == "hang":
                released.wait(10)
            if now in ("hang", "drop"):
                self.close_connection = True
                return
            status, body, headers = (*now, {})[:3]
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def ask(url, method="GET", timeout_s=5.0, **options):
    return Client("vast", url, KEY, timeout_s=timeout_s).call("offers", method, "/x", Reply, **options)


def test_three_failures_then_an_answer(clock):
    with serving((500, "oops"), (503, "oops"), "drop", (200, {"price": 0.5, "unknown": 1})) as (url, got):
        assert ask(url).price == 0.5
    assert got == [("GET", "/x", f"Bearer {KEY}")] * 4
    assert len(clock.slept) == 3 and all(2**i <= s <= 2**i + 1 for i, s in enumerate(clock.slept))


def test_gives_up_after_five_tries(clock):
    with (
        serving((502, {"detail": "upstream"})) as (url, got),
        pytest.raises(MarketError, match="vast, offers: HTTP 502: up"),
    ):
        ask(url)
    assert len(got) == 5


@pytest.mark.parametrize("cut", ['{"success": true, "pri', "<html>"])
def test_a_reply_that_is_cut_off_is_asked_for_again(clock, cut):
    with serving((200, cut), (200, {"price": 0.5})) as (url, got):
        assert ask(url).price == 0.5 and len(got) == 2
    with (
        serving(*[(200, cut)] * 5) as (url, _),
        pytest.raises(MarketError, match="reply's body is wrong: Invalid JSON"),
    ):
        ask(url)


def test_retry_after_is_waited_for(clock):
    with serving((429, "slow", {"Retry-After": "7"}), (200, {"price": 1})) as (url, _):
        ask(url)
    assert clock.slept == [7.0]


def test_a_long_retry_after_is_not_waited_for(clock):
    with serving((429, "slow", {"Retry-After": "3600"})) as (url, got), pytest.raises(MarketError, match="429"):
        ask(url)
    assert len(got) == 1 and not clock.slept


def test_a_create_is_asked_for_again_after_429_only(clock):
    with serving((429, "API requests too frequent"), (200, {"price": 1})) as (url, got):
        ask(url, "PUT", creates=True)
    assert len(got) == 2
    for answer in ((500, "oops"), "drop", (200, '{"pri'), (200, {"unexpected": True})):
        with serving(answer) as (url, got), pytest.raises(Unsure, match="may have worked"):
            ask(url, "PUT", creates=True)
        assert len(got) == 1, answer


def test_a_create_that_times_out_may_have_worked(clock):
    with serving("hang") as (url, got), pytest.raises(Unsure, match=r"ReadTimeout.*may have worked"):
        ask(url, "PUT", creates=True, timeout_s=0.2)
    assert len(got) == 1


def test_a_create_that_reached_nobody_is_asked_for_again(clock):
    with serving((200, {})) as (url, _):
        pass
    with pytest.raises(Unreachable, match="can't be reached: ConnectError"):
        ask(url, "PUT", creates=True)
    assert len(clock.slept) == 4


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (
            (401, {"error": "auth_error", "msg": "Invalid user key"}),
            Refused,
            r"the API key is refused \(HTTP 401: auth_error: Invalid user key\). Check VAST_API_KEY, or .*/shoestring/vast_api_key",
        ),
        (
            (404, {"success": False, "error": "auth_error", "msg": "Invalid user key"}),
            Refused,
            r"the API key is refused \(HTTP 404: auth_error: Invalid user key\). Check VAST_API_KEY",
        ),
        ((403, {"title": "Forbidden", "detail": "no"}), Refused, "HTTP 403: Forbidden: no. Is the API key allowed"),
        (
            (410, "<html><head><title>Gone</title></head>"),
            Refused,
            "HTTP 410: a web page, 'Gone'. It seems that vast has retired",
        ),
        ((404, {"title": "Not Found", "status": 404, "detail": "no pod"}), Refused, "HTTP 404: Not Found: no pod"),
        ((422, {"detail": "bad", "errors": ["$: 'bogus' not allowed"]}), Refused, "HTTP 422: bad: .*bogus"),
        ((200, {"success": False, "error": "insufficient_credit"}), Refused, "insufficient_credit"),
        ((410, {"error": "no_such_ask"}), Taken, "no_such_ask"),
        ((200, [{"success": False}]), MarketError, "the reply's body is wrong: Input should be an object"),
        ((200, {"price": "much"}), MarketError, "the reply's price is wrong: Input should be a valid number"),
        ((200, {}), MarketError, "the reply's price is wrong: Field required"),
        ((302, "", {"Location": "http://127.0.0.1:1/"}), MarketError, "HTTP 302"),
    ],
)
def test_answers_that_ask_for_no_retry(clock, answer, error, says):
    with serving(answer) as (url, got), pytest.raises(MarketError, match=says) as caught:
        ask(url, taken=lambda status, text: status == 410 and "no_such_ask" in text)
    assert type(caught.value) is error and len(got) == 1


class Done(BaseModel):
    pass


@pytest.mark.parametrize(
    ("market", "body"),
    [
        ("vast", {"success": False, "error": "not_found", "msg": "Instance not found"}),
        ("vast", {"success": False, "error": "no_such_instance", "msg": "Instance 7 not found."}),
        ("runpod", {"title": "Not Found", "status": 404, "detail": "pod not found"}),
        ("runpod", {"title": "Not Found", "status": 404, "detail": "resource not found"}),
        ("runpod", {"title": "Not Found", "status": 404, "detail": "The requested Pod does not exist."}),
    ],
)
def test_a_rental_that_is_already_gone_is_no_error(market, body):
    with serving((404, body)) as (url, got):
        MARKETS[market](KEY, url).destroy("7")
    assert got[0][0] == "DELETE"


@pytest.mark.parametrize("market", ["vast", "runpod"])
@pytest.mark.parametrize(
    "answer",
    [
        (404, {"success": False, "error": "auth_error", "msg": "Invalid user key"}),
        (404, {"success": False, "msg": "Session expired. Please log in again."}),
        (404, "not found"),
        (404, "<html><head><title>The requested resource was not found</title></head></html>"),
        (404, {"message": "no Route matched with those values"}),
        (404, {"detail": "Not Found"}),
        (410, {"error": "endpoint_gone"}),
        (200, {"success": False, "error": "auth_error"}),
    ],
)
def test_another_failure_is_not_gone(market, answer):
    """Otherwise the ledger would end a rental that is still billed."""
    with serving(answer) as (url, _), pytest.raises(Refused):
        MARKETS[market](KEY, url).destroy("7")


def test_waits_are_told(clock, caplog):
    with serving((503, "busy"), (429, "slow", {"Retry-After": "20"}), (200, {"price": 1})) as (url, _):
        ask(url)
    mine = [r for r in caplog.records if r.name == "cluster.market.http" and r.thread == clock.thread]
    assert [r.message.split(" s, ")[0] for r in mine] == [
        f"vast, offers: HTTP 503: busy. Retrying in {clock.slept[0]:.0f}",
        "vast, offers: HTTP 429, too many calls: slow. Retrying in 20",
    ]
    assert "attempt 3 of 5" in caplog.text
    with serving((200, {"price": 1})) as (url, _):
        api = Client("vast", url, KEY, {"create": (1, 4.5), "offers": (2, 63.0)})
        for kind in ("create", "create", "offers", "offers", "offers"):
            api.call(kind, "GET", "/x", Reply)
    assert (
        "vast, offers: waiting 63 s, since the market allows 2 calls in 63 s." in caplog.text
        and "create: waiting" not in caplog.text
    )


def test_the_key_is_in_no_message_repr_or_log(clock, caplog):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "httpx")  # importing other tests' modules silences it
    said = []
    for answer in ((401, {"msg": f"bad key {KEY}"}), (500, KEY), (200, {"price": KEY}), "drop"):
        with serving(answer) as (url, _), pytest.raises(MarketError) as caught:
            ask(url)
        said += [str(caught.value), repr(caught.value), repr(caught.value.__cause__), repr(Client("vast", url, KEY))]
    assert "[key]" in said[0] and "httpx" in {r.name for r in caplog.records}
    assert KEY not in "\n".join(said) + caplog.text


def test_pace(clock):
    """2 calls in 10 s: the third waits until the first is 10 s old, and so on."""
    pace = http.Pace(2, 10.0)
    for _ in range(5):
        pace.wait()
    assert clock.slept == [10.0, 10.0]


def test_pace_over_threads():
    pace, times, start = http.Pace(2, 0.2), [], time.monotonic()
    threads = [threading.Thread(target=lambda: (pace.wait(), times.append(time.monotonic()))) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    # Two every 0.2 s. A busy machine can only delay a thread, so each has an earliest moment.
    assert [t >= start + 0.2 * (i // 2) for i, t in enumerate(sorted(times))] == [True] * 6


def test_kinds_are_paced_apart(clock):
    with serving((200, {"price": 1})) as (url, _):
        api = Client("vast", url, KEY, {"create": (1, 4.5), "list": (1, 1.0)})
        for kind in ("create", "list", "offers", "offers", "create"):
            api.call(kind, "GET", "/x", Reply)
    assert clock.slept == [4.5]
