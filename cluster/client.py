"""A market's HTTP API: paced, retried where that can't rent twice, its replies checked against a typed model.

The key goes into one header and nowhere else: not into an address, a message, a log or a repr.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential_jitter,
)

from cluster.market import MarketError, Refused, Taken, Unsure

Reply = TypeVar("Reply", bound=BaseModel)

TRIES = 5
BACKOFF = wait_exponential_jitter(initial=1, max=20, jitter=1)  # 1, 2, 4, 8 s, each and up to one more
LONGEST_CALL_S = 60.0
"""No try begins later than that."""
LONGEST_WAIT_S = 60.0
"""A longer Retry-After isn't waited for; whoever asked decides."""

sleep = time.sleep  # tests put a clock of their own here
clock = time.monotonic


class _Again(Exception):
    """A try that failed and may be made again."""

    def __init__(self, error: MarketError, after_s: float | None = None):
        super().__init__(str(error))
        self.error, self.after_s = error, after_s


class Pace:
    """At most `calls` in any `seconds`, over all threads, in the order in which they came."""

    def __init__(self, calls: int, seconds: float):
        self.seconds, self.lock = seconds, threading.Lock()
        self.last: deque[float] = deque(maxlen=calls)

    def wait(self) -> None:
        with self.lock:
            now = clock()
            turn = max(now, self.last[0] + self.seconds) if len(self.last) == self.last.maxlen else now
            self.last.append(turn)
        if turn > now:
            sleep(turn - now)


class Client:
    """Thread-safe.

    `pace`: {kind of call: (calls, seconds)}, the market's own limits; a kind that isn't there is not paced.
    """

    def __init__(
        self, market: str, url: str, key: str, pace: dict[str, tuple[int, float]] | None = None, timeout_s: float = 20.0
    ):
        self.market, self._key = market, key
        self.pace = {kind: Pace(*limit) for kind, limit in (pace or {}).items()}
        self.http = httpx.Client(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {key}", "User-Agent": "shoestring"},
            timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s)),
        )

    def __repr__(self) -> str:
        return f"Client({self.market}, {self.http.base_url})"

    def call(
        self,
        kind: str,
        method: str,
        path: str,
        reply: type[Reply],
        *,
        json: dict | None = None,
        params: dict | None = None,
        creates: bool = False,
        gone: bool = False,
        taken: Callable[[int, str], bool] = lambda status, text: False,
    ) -> Reply:
        """The reply to `method` `path`, parsed as `reply`. `kind` paces it and names it in messages; `gone`: 404 is a
        success too, parsed as {}.

        Waited for and asked again: 429 (as long as Retry-After says), 5xx, time-outs, broken connections and cut-off
        replies. Of a call that `creates` something, only what certainly did nothing: 429, and a connection that never came about; after
        anything else it may have worked, and Unsure is raised.
        Raises Taken where taken(status, text) says so, Refused for any other 4xx, else MarketError.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(_Again),
            wait=_wait,
            stop=stop_after_attempt(TRIES) | stop_after_delay(LONGEST_CALL_S),
            sleep=lambda s: sleep(s),
            reraise=True,
        )
        try:
            return retrying(self._once, kind, method, path, reply, json, params, creates, gone, taken)
        except _Again as e:
            raise e.error from None

    def _once(self, kind, method, path, reply, json, params, creates, gone, taken):
        if kind in self.pace:
            self.pace[kind].wait()
        try:
            answer = self.http.request(method, path, json=json, params=params)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as e:
            raise _Again(MarketError(self._says(kind, f"{self.http.base_url} can't be reached: {_name(e)}"))) from None
        except httpx.RequestError as e:
            self._uncertain(kind, creates, f"no answer: {_name(e)}")
        status, body = answer.status_code, _object(answer)
        failed = status >= 400 or body.get("success") is False  # Vast answers some failures with 200
        text = _detail(body, answer) if failed else ""
        if status == 429:
            wait = _seconds(answer.headers.get("Retry-After"))
            error = MarketError(self._says(kind, f"HTTP 429, too many calls: {text}"))
            raise _Again(error, wait) if wait is None or wait <= LONGEST_WAIT_S else error
        if status >= 500:
            self._uncertain(kind, creates, f"HTTP {status}: {text}")
        if gone and status == 404:
            return reply()
        if failed and taken(status, text):
            raise Taken(self._says(kind, f"HTTP {status}: {text}"))
        if failed:
            hint = ". Is the API key right, and allowed to do this?" if status in (401, 403) else ""
            raise Refused(self._says(kind, f"HTTP {status}: {text}{hint}"))
        if status >= 300:
            raise MarketError(self._says(kind, f"HTTP {status}, where an answer was expected"))
        try:
            return reply.model_validate_json(answer.content or b"{}")
        except ValidationError as e:
            first = e.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"])) or "body"
            problem = f"the reply's {field} is wrong: {first['msg']}"
            if creates or first["type"] == "json_invalid":  # cut off, or a gateway's page
                self._uncertain(kind, creates, problem)
            raise MarketError(self._says(kind, problem)) from None

    def _uncertain(self, kind: str, creates: bool, problem: str):
        if creates:
            raise Unsure(self._says(kind, f"{problem}. It may have worked: look for its label before asking again."))
        raise _Again(MarketError(self._says(kind, problem)))

    def _says(self, kind: str, problem: str) -> str:
        return f"{self.market}, {kind}: {problem}".replace(self._key, "[key]")


def _object(answer: httpx.Response) -> dict:
    """{} where it isn't a JSON object; the reply's model then says what is wrong with it."""
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _detail(body: dict, answer: httpx.Response) -> str:
    """The error in the API's own words: Vast's error and msg, RunPod's title, detail and errors, or the body's beginning."""
    said = [body.get(k) for k in ("error", "title", "msg", "detail")] + list(body.get("errors") or [])
    return ": ".join(str(s) for s in said if s)[:400] or " ".join(answer.text.split())[:200]


def _wait(state: RetryCallState) -> float:
    after = state.outcome.exception().after_s
    return after if after is not None else BACKOFF(state)


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; a date there (RFC 9110 allows one, neither market sends one) counts as none."""
    return float(header) if header and header.strip().isdigit() else None


def _name(e: Exception) -> str:
    return f"{type(e).__name__}{f' ({e})' if str(e) else ''}"
