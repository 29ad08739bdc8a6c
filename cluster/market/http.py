"""A market's HTTP API: rate-limited, retried unless that could rent twice, replies validated against a typed model.

The API key is sent in one header and appears nowhere else: in no URL, message, log or repr.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

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

from cluster.market.base import MarketError, Refused, Taken, Unreachable, Unsure

log = logging.getLogger(__name__)
Reply = TypeVar("Reply", bound=BaseModel)

TRIES = 5
BACKOFF = wait_exponential_jitter(initial=1, max=20, jitter=1)  # 1, 2, 4, 8 s, each and up to one more
LONGEST_CALL_S = 60.0
"""No attempt begins later than this after the first."""
LONGEST_WAIT_S = 60.0
"""A longer Retry-After raises instead of waiting; the caller decides."""
TOLD_S = 5.0
"""A longer wait for a market's rate limit is logged."""
NO_KEY = ("auth_error", "invalid user key", "session expired")
"""Vast's error texts for an unknown key, in lower case, with status 401, 403 or 404: its documentation has the first two
statuses (api-reference/openapi/yaml), its own command line also expects 404 (vast-cli, vastai/cli/main.py)."""

sleep = time.sleep  # replaced by tests
clock = time.monotonic


class _Again(Exception):
    """A failed attempt that may be retried. after_s: the reply's Retry-After in seconds."""

    def __init__(self, error: MarketError, after_s: float | None = None):
        super().__init__(str(error))
        self.error, self.after_s = error, after_s


def key_file(market: str) -> Path:
    """Returns the file of the account's key, used if the environment has none."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "shoestring" / f"{market}_api_key"


class Pace:
    """A rate limiter: at most `calls` in any `seconds`, over all threads, first come first served. what: the limit's name in the log."""

    def __init__(self, calls: int, seconds: float, what: str = ""):
        self.calls, self.seconds, self.what, self.lock = calls, seconds, what, threading.Lock()
        self.last: deque[float] = deque(maxlen=calls)

    def wait(self) -> None:
        with self.lock:
            now = clock()
            turn = max(now, self.last[0] + self.seconds) if len(self.last) == self.last.maxlen else now
            self.last.append(turn)
        if turn - now >= TOLD_S:
            limit = f"{self.calls} call{'s' * (self.calls > 1)} in {self.seconds:.0f} s"
            log.warning(f"{self.what}: waiting {turn - now:.0f} s, since the market allows {limit}.")
        if turn > now:
            sleep(turn - now)


class Client:
    """Thread-safe.

    `pace`: {kind of call: (calls, seconds)}, the market's own limits; other kinds are not limited.
    """

    def __init__(
        self, market: str, url: str, key: str, pace: dict[str, tuple[int, float]] | None = None, timeout_s: float = 20.0
    ):
        self.market, self._key = market, key
        self.pace = {kind: Pace(*limit, what=f"{market}, {kind}") for kind, limit in (pace or {}).items()}
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
        gone: Callable[[int, dict], bool] = lambda status, body: False,
        taken: Callable[[int, str], bool] = lambda status, text: False,
    ) -> Reply:
        """Sends `method` `path` and returns the reply parsed as `reply`. `kind` selects the rate limit and names the call in messages.

        gone(status, JSON body or {}): whether this failure is how the market reports "there is no such rental", which is a success
        here, parsed as {}. A 404 alone isn't enough: an unknown key, a retired path and a gateway also return it.
        Retried, and logged each time: 429 (after its Retry-After), 5xx, timeouts, broken connections and truncated replies. A call
        that `creates` something is retried only if it certainly did nothing (429, no connection); after anything else it may have
        worked, and Unsure is raised.
        Raises Taken if taken(status, text) is true, Refused for any other 4xx, Unreachable, else MarketError.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(_Again),
            wait=_wait,
            stop=stop_after_attempt(TRIES) | stop_after_delay(LONGEST_CALL_S),
            sleep=lambda s: sleep(s),
            before_sleep=_tell,
            reraise=True,
        )
        try:
            return retrying(self._once, kind, method, path, reply, json, params, creates, gone, taken)
        except _Again as e:
            raise e.error from None

    def _once(
        self,
        kind: str,
        method: str,
        path: str,
        reply: type[Reply],
        json: dict | None,
        params: dict | None,
        creates: bool,
        gone: Callable[[int, dict], bool],
        taken: Callable[[int, str], bool],
    ) -> Reply:
        if kind in self.pace:
            self.pace[kind].wait()
        try:
            answer = self.http.request(method, path, json=json, params=params)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as e:
            raise _Again(Unreachable(self._says(kind, f"{self.http.base_url} can't be reached: {_name(e)}"))) from None
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
        if failed and (status == 401 or any(said in text.lower() for said in NO_KEY)):
            where = f"{self.market.upper()}_API_KEY, or where that isn't set {key_file(self.market)}"
            raise Refused(self._says(kind, f"the API key is refused (HTTP {status}: {text}). Check {where}"))
        if failed and gone(status, body):
            return reply()
        if failed and taken(status, text):
            raise Taken(self._says(kind, f"HTTP {status}: {text}"))
        if failed:
            hint = {
                403: ". Is the API key allowed to do this?",
                410: f". It seems that {self.market} has retired this call",
            }
            raise Refused(self._says(kind, f"HTTP {status}: {text}{hint.get(status, '')}"))
        if status >= 300:
            raise MarketError(self._says(kind, f"unexpected HTTP {status}"))
        try:
            return reply.model_validate_json(answer.content or b"{}")
        except ValidationError as e:
            first = e.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"])) or "body"
            problem = f"the reply's {field} is wrong: {first['msg']}"
            if creates or first["type"] == "json_invalid":  # truncated, or a gateway's page
                self._uncertain(kind, creates, problem)
            raise MarketError(self._says(kind, problem)) from None

    def stream(self, kind: str, path: str, seconds: float, params: dict | None = None) -> list[str]:
        """Returns the data of the server-sent events of GET `path` that arrive within `seconds`, since such a stream never ends. No
        retries. Raises MarketError."""
        found, give_up = [], clock() + seconds
        try:
            with self.http.stream("GET", path, params=params, timeout=seconds) as answer:
                if answer.status_code != 200:
                    raise MarketError(self._says(kind, f"HTTP {answer.status_code}"))
                for line in answer.iter_lines():
                    if line.startswith("data:"):
                        found.append(line.removeprefix("data:").strip())
                    if clock() > give_up:
                        break
        except httpx.ReadTimeout:
            pass  # no more events for now
        except httpx.RequestError as e:
            raise MarketError(self._says(kind, f"no answer: {_name(e)}")) from None
        return found

    def _uncertain(self, kind: str, creates: bool, problem: str) -> NoReturn:
        if creates:
            raise Unsure(self._says(kind, f"{problem}. It may have worked: look for its label before trying again."))
        raise _Again(MarketError(self._says(kind, problem)))

    def _says(self, kind: str, problem: str) -> str:
        return f"{self.market}, {kind}: {problem}".replace(self._key, "[key]")


def _object(answer: httpx.Response) -> dict:
    """Returns the body's JSON object; {} if it isn't one, in which case validating the reply fails with the details."""
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _detail(body: dict, answer: httpx.Response) -> str:
    """Returns the error in the API's own words: Vast's error and msg, RunPod's title, detail and errors, a page's title, or the start
    of the body."""
    texts = [body.get(k) for k in ("error", "title", "msg", "message", "detail")]
    texts += body["errors"] if isinstance(body.get("errors"), list) else []
    page = re.search(r"<title>(.*?)</title>", answer.text, re.IGNORECASE | re.DOTALL)
    if page:
        return f"a web page, {' '.join(page[1].split())[:200]!r}"
    return ": ".join(str(s) for s in texts if s)[:400] or " ".join(answer.text.split())[:200]


def _tell(state: RetryCallState) -> None:
    """Logs a retry before its wait, so that a minute doesn't pass in silence. `ray up` and this project's commands log to stderr."""
    log.warning(
        f"{_failure(state)}. Retrying in {state.upcoming_sleep:.0f} s, attempt {state.attempt_number + 1} of {TRIES}."
    )


def _wait(state: RetryCallState) -> float:
    after = _failure(state).after_s
    return after if after is not None else BACKOFF(state)


def _failure(state: RetryCallState) -> _Again:
    """Returns the error of the attempt that is to be retried."""
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, _Again), "nothing else is retried"
    return error


def _seconds(header: str | None) -> float | None:
    """Parses Retry-After in seconds; a date (allowed by RFC 9110, sent by neither market) counts as none."""
    return float(header) if header and header.strip().isdigit() else None


def _name(e: Exception) -> str:
    return f"{type(e).__name__}{f' ({e})' if str(e) else ''}"
