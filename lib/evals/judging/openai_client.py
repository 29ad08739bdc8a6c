"""Client for a model behind an OpenAI-compatible API: concurrent requests, retries, a cache by content, and usage counts.

Replies are stored in the run (lib/evals/judging/replies.py). The API key is read from the environment, sent in one header and never
written to disk.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Collection
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from lib.evals.judging.replies import Replies, Reply
from lib.run import Run

TRIES = 4
IN_A_ROW = 8
"""After this many consecutive requests without an answer, the endpoint is considered unreachable."""


@dataclass
class Judge:
    """A language model that compares or grades answers."""

    url: str = ""
    """Base URL of an OpenAI-compatible API, including /v1, such as http://127.0.0.1:8000/v1. Empty: no language model judges."""
    model: str = ""
    """The model's name at that API."""
    key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the API key; not required on loopback."""
    prompts: str | None = None
    """File of judge prompts in MT-Bench's format (JSONL with type, system_prompt, prompt_template). None: the built-in prompts."""
    max_tokens: int = 1024
    """Maximum length of a verdict in tokens, including its reasons."""
    timeout_s: float = 120.0
    """Seconds to wait for one verdict. A request is sent at most four times."""
    at_once: int = 8
    """Maximum number of concurrent requests."""
    usd_per_million_in: float = 0.0
    """Price in USD of a million input tokens, for the report's cost."""
    usd_per_million_out: float = 0.0
    """Price in USD of a million output tokens."""

    @property
    def name(self) -> str:
        """The judge's name in the report."""
        return self.model.rstrip("/").rsplit("/", 1)[-1]


class Unreachable(RuntimeError):
    """The endpoint can't be used at all: nothing listens, or the key or the model is wrong."""


def problems(judge: Judge, runs: Collection[str] = ()) -> list[str]:
    """Returns the problems visible from the settings alone, each beginning with its key. runs: names of the judged runs."""
    if not judge.url:
        return []
    parts, out = urlsplit(judge.url), []
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return [f"judge.url: {judge.url!r} is no http(s) address, such as http://127.0.0.1:8000/v1."]
    if parts.username or parts.password or parts.query:
        out.append("judge.url: holds a secret or a query. Put the key into the environment variable of judge.key_env.")
    if not judge.model:
        out.append("judge.model: say which model of judge.url is to judge.")
    if judge.name in runs:  # the judge's statistics would appear in the run's column
        out.append(f"runs.{judge.name}: the report calls the judge {judge.name} too. Give the run another name.")
    if judge.name in ("reward", "rule"):
        out.append(f"judge.model: {judge.name} is what a reward run or rule is called. Serve it under another name.")
    if parts.hostname not in ("127.0.0.1", "localhost", "::1") and not os.environ.get(judge.key_env):
        out.append(f"judge.key_env: the environment variable {judge.key_env}, which should hold the key, is not set.")
    for key in ("max_tokens", "timeout_s", "at_once"):
        if getattr(judge, key) <= 0:
            out.append(f"judge.{key}: must be above 0, is {getattr(judge, key)}.")
    return out


class Endpoint:
    """Sends requests to the judge. Thread-safe; replies are stored in `run`."""

    def __init__(self, judge: Judge, run: Run):
        import httpx

        self.judge, self.lock, self.silent = judge, threading.Lock(), 0
        self.kept = Replies(run, judge.model)
        self.absent: Unreachable | None = None
        self.pool = ThreadPoolExecutor(judge.at_once)
        self.asked: dict[str, Future] = {}
        self.stop, self.gone = threading.Event(), None
        key = os.environ.get(judge.key_env)
        self.http = httpx.Client(
            base_url=judge.url.rstrip("/"),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(judge.timeout_s, connect=10),
            limits=httpx.Limits(max_connections=judge.at_once),
        )

    def check(self) -> None:
        """Raises Unreachable if nothing answers, the key is rejected, or the endpoint doesn't list the model. If replies of this
        model are stored, the error is raised only by the first request that none of them answers."""
        try:
            self._check()
        except Unreachable as e:
            if not self.kept:
                raise
            self.absent = e

    def _check(self) -> None:
        import httpx

        from lib.errors import nearest

        try:
            found = self.http.get("/models", timeout=20)
        except httpx.TransportError as e:
            raise Unreachable(f"judge.url: nothing answers at {self.judge.url} ({type(e).__name__}: {e}).") from None
        if found.status_code in (401, 403):
            raise Unreachable(f"judge.key_env: {self.judge.url} refuses the key in {self.judge.key_env}.")
        try:
            names = [m["id"] for m in found.json()["data"]]
        except (ValueError, KeyError, TypeError):  # no model list; a wrong model fails at the first request
            return
        if names and self.judge.model not in names and not os.path.isdir(self.judge.model):
            hint = nearest(self.judge.model, names) or f" It has {', '.join(names[:5])}."
            raise Unreachable(f"judge.model: {self.judge.url} has no {self.judge.model}.{hint}")

    def ask(self, conversations: list[list[dict]]) -> list[Reply]:
        """Returns one reply per conversation, in order. Identical requests are sent once, across all callers. Raises Unreachable
        if further requests are pointless."""
        keys = [json.dumps(c) for c in conversations]
        with self.lock:
            if self.gone:
                raise self.gone
            for key, conversation in zip(keys, conversations, strict=True):
                if key not in self.asked:
                    self.asked[key] = self.pool.submit(self._one, conversation)
        try:
            return [self.asked[key].result() for key in keys]
        except CancelledError:
            raise self.gone from None
        except Unreachable as e:
            self.close(e)
            raise self.gone from None

    def close(self, why: Unreachable | None = None) -> None:
        """Sends no more requests; pending and later calls raise `why`."""
        with self.lock:
            self.gone = self.gone or why or Unreachable("judge: not asked any more, since something else failed.")
        self.stop.set()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def replies(self) -> list[Reply]:
        """Returns the reply to every distinct request."""
        return [f.result() for f in self.asked.values()]

    def spent(self) -> dict:
        """Returns {seconds, replies, cached, refused, failed, tokens_in, tokens_out, usd}. seconds, failed, tokens and usd exclude
        cached replies; refused counts requests that the API rejected, failed those without any answer."""
        replies = self.replies()
        new = [r for r in replies if not r.cached]
        tokens = {k: sum(getattr(r, k) for r in new) for k in ("tokens_in", "tokens_out")}
        usd = (
            tokens["tokens_in"] * self.judge.usd_per_million_in + tokens["tokens_out"] * self.judge.usd_per_million_out
        )
        seconds = sum(r.seconds for r in new)
        count = {"seconds": seconds, "replies": len(replies), "cached": len(replies) - len(new)}
        lost = {
            "refused": sum(r.refused for r in replies),
            "failed": sum(r.text is None and not r.refused for r in new),
        }
        return {**count, **lost, **tokens, "usd": usd / 1e6}

    def warnings(self) -> list[str]:
        """Returns the warnings about the replies that a reader of the scores needs, one line each."""
        replies, out = self.replies(), []
        refused = [r for r in replies if r.refused]
        failed = [r for r in replies if r.text is None and not r.refused]
        for lost, how in ((refused, "were refused by its API"), (failed, "got no answer")):
            if lost:
                share = f"{len(lost)} of {len(replies)} questions to the judge {self.judge.model}"
                out.append(f"{share} {how} and are left out of its scores. The first: {lost[0].error}")
        moved = [r.url for r in replies if r.cached and r.url != self.judge.url]
        if moved:
            out.append(
                f"{len(moved)} of {len(replies)} replies of the judge {self.judge.model} were kept from {moved[0]}, not from "
                f"{self.judge.url}. If another model has that name now, set another run."
            )
        if self.absent:
            out.append(f"All {len(replies)} replies of the judge {self.judge.model} are kept ones. {self.absent}")
        return out

    def _one(self, messages: list[dict]) -> Reply:
        j = self.judge
        body = {"model": j.model, "messages": messages, "temperature": 0, "max_tokens": j.max_tokens}
        kept = self.kept.get(body)
        if kept and (kept.text is not None or self.absent):
            with self.lock:
                self.silent = 0  # as in the original run, so that failures between answers don't accumulate
            return kept
        if self.absent:
            raise self.absent
        began = time.time()
        reply = replace(self._post(body), seconds=time.time() - began, url=j.url)
        answered = reply.text is not None or reply.refused
        with self.lock:
            self.silent = 0 if answered else self.silent + 1
            if self.silent >= IN_A_ROW and not (kept and kept.refused):
                raise Unreachable(f"judge: {IN_A_ROW} questions in a row got no answer. The last: {reply.error}")
        if kept and not answered:
            return kept
        self.kept.put(body, reply)
        return reply

    def _post(self, body: dict) -> Reply:
        """Retries after timeouts, 429 and 5xx, waiting for the larger of Retry-After and an exponential backoff."""
        import httpx
        from tenacity import (
            RetryError,
            Retrying,
            retry_if_result,
            sleep_using_event,
            stop_after_attempt,
            stop_when_event_set,
            wait_exponential_jitter,
        )

        def once() -> Reply | tuple[str, float]:
            try:
                found = self.http.post("/chat/completions", json=body)
            except httpx.TransportError as e:
                return f"{type(e).__name__} {e}".strip(), 0.0
            if found.status_code == 429 or found.status_code >= 500:
                after = found.headers.get("retry-after", "")
                return f"HTTP {found.status_code}: {found.text[:200]}", float(after) if after.isdigit() else 0.0
            if found.status_code in (400, 413, 422):  # specific to this request: too long, or a content filter
                return Reply(None, error=f"HTTP {found.status_code}: {found.text[:200]}", refused=True)
            if found.status_code >= 400:
                raise Unreachable(f"judge: {self.judge.url} answers HTTP {found.status_code}: {found.text[:300]}")
            try:
                answer = found.json()
                used = answer.get("usage") or {}
                text = answer["choices"][0]["message"]["content"] or ""
            except (ValueError, KeyError, IndexError, TypeError):
                return f"not a chat completion: {found.text[:200]}", 0.0
            return Reply(text, used.get("prompt_tokens") or 0, used.get("completion_tokens") or 0)

        longer = wait_exponential_jitter(multiplier=0.5, max=20)
        retry = Retrying(
            stop=stop_after_attempt(TRIES) | stop_when_event_set(self.stop),
            sleep=sleep_using_event(self.stop),
            retry=retry_if_result(lambda r: not isinstance(r, Reply)),
            wait=lambda state: max(longer(state), min(state.outcome.result()[1], 120)),
        )
        try:
            return retry(once)
        except RetryError as e:
            return Reply(None, error=e.last_attempt.result()[0])
