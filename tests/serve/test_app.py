"""A run behind `serve run`, called by OpenAI's own client, by a flood of requests, and while a replica is killed."""

import collections
import os
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import httpx
import openai
import pytest

from tests import warm
from tests.conftest import PATIENCE, REPO
from tests.http import http
from tests.serve.conftest import replicas, serving
from tests.throttle import throttled

pytestmark = pytest.mark.slow


HELLO = [{"role": "user", "content": "what is red?"}]


@cache
def client(url: str, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="-", max_retries=retries, timeout=60)


def ask(url: str, retries: int = 0, tokens: int = 4) -> int:
    """Returns the status of one request."""
    try:
        client(url, retries).chat.completions.create(model="sft", messages=HELLO, max_tokens=tokens)
        return 200
    except openai.APIStatusError as e:
        return e.status_code


def test_chat(url, runs):
    """Greedy answers equal those of the evaluation's engine, in one piece and streamed."""
    from lib.generation.sampling import Sampling
    from lib.generation.transformers_generator import TransformersGenerator

    want = TransformersGenerator(f"{runs['sft']}/model").generate([HELLO], Sampling(max_new_tokens=6))[0][0].text
    common = {"model": "sft", "messages": HELLO, "max_tokens": 6, "temperature": 0}
    reply = client(url).chat.completions.create(**common)
    assert reply.choices[0].message.content == want and reply.model == "sft"
    parts = list(client(url).chat.completions.create(**common, stream=True))
    assert {c.model for c in parts} == {"sft"}
    assert "".join(c.choices[0].delta.content or "" for c in parts if c.choices) == want
    text = client(url).completions.create(model="sft", prompt="the red", max_tokens=4, temperature=0)
    assert text.choices[0].text and text.model == "sft"


def test_models_say_the_engine(url):
    (model,) = client(url).models.list().data
    assert model.id == "sft" and model.owned_by.startswith("transformers ")


def test_what_it_cannot_do_is_said(url):
    with pytest.raises(openai.NotFoundError, match="no model 'dpo' here"):
        client(url).chat.completions.create(model="dpo", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match=r"logprobs: transformers .* doesn't support that; vLLM does"):
        client(url).chat.completions.create(model="sft", messages=HELLO, logprobs=True)
    assert http.post(f"{url.removesuffix('/v1')}/load_model", json={"model": "x/y"}).status_code == 404


def test_a_flood(url):
    """Three requests are answered at once and three wait; more get 429, and a client that retries as told gets its answer."""
    with ThreadPoolExecutor(24) as pool:
        codes = collections.Counter(pool.map(lambda _: ask(url, tokens=400), range(24)))
        assert set(codes) == {200, 429} and codes[200] >= 6, codes
        assert set(pool.map(lambda _: ask(url, retries=20), range(12))) == {200}


def test_bodies_that_no_engine_is_given(url):
    for body in (
        b"[" * 100_000,
        b'{"seed": 1e999}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "\xff"}',
    ):
        reply = http.post(f"{url}/chat/completions", content=body)
        assert reply.status_code == 400 and reply.json()["error"]["code"] == 400, reply.text
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}}"
        )
        assert raw.recv(100).startswith(b"HTTP/1.1 400 ")


def test_a_port_that_is_taken(runs, url):
    port = httpx.URL(url).port
    command = [
        warm.python(),
        "-m",
        "ray.serve.scripts",
        "run",
        "--address",
        "local",
        "serve.app:app",
        f"run={runs['sft']}",
    ]
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run([*command, f"port={port}"], cwd=REPO, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert f"port: something listens on {port} already. Take another: port={port + 1}" in done.stderr
    assert ask(url, retries=20) == 200


def test_a_client_that_goes_away(url):
    gone, asked = 0, {"model": "sft", "messages": HELLO, "max_tokens": 500}
    while (
        gone < 8
    ):  # more than are answered and waiting: places become free only as the server notices that clients left
        try:  # 200: the answer happened to be short
            assert http.post(f"{url}/chat/completions", json=asked, timeout=0.05).status_code in (200, 429)
        except httpx.ReadTimeout:
            gone += 1
    assert ask(url, retries=20) == 200


def test_replicas_come_and_go_with_the_load(runs, tmp_path):
    args = {
        "run": runs["sft"],
        "engine": "transformers",
        "dtype": "float32",
        "max_replicas": 2,
        "at_once": 2,
        "idle_s": 1,
    }
    long = {"model": "sft", "messages": HELLO, "max_tokens": 400}
    with serving(tmp_path, args) as (address, process), ThreadPoolExecutor(4) as pool:
        assert len(replicas(process)) == 1
        began, over = time.time(), threading.Event()

        def busy():
            while not over.is_set():
                http.post(f"{address}/chat/completions", json=long, timeout=60)
                over.wait(0.05)

        clients = [pool.submit(busy) for _ in range(4)]
        try:
            with throttled((p.pid for p in replicas(process)), ("ray::ServeReplica",)):
                while len(replicas(process)) < 2:
                    assert time.time() < began + PATIENCE
                    time.sleep(0.5)
        finally:
            over.set()
        came = time.time()
        for c in clients:
            c.result(60)
        while len(replicas(process)) > 1:
            assert time.time() < came + 150
            time.sleep(0.5)
        print(f"a second replica after {came - began:.0f} s of load, gone {time.time() - came:.0f} s after its end")
        assert ask(address, retries=20) == 200


def test_a_replica_is_killed_under_load(runs, tmp_path):
    """1,000 requests of 32 clients: each is answered or refused with a retryable status; none hangs."""
    args = {"run": runs["sft"], "engine": "transformers", "dtype": "float32", "replicas": 2, "at_once": 32}
    with serving(tmp_path, args) as (address, process), ThreadPoolExecutor(32) as pool:
        asked = [pool.submit(ask, address) for _ in range(1000)]
        while sum(a.done() for a in asked) < 300:
            time.sleep(0.1)
        replicas(process)[0].kill()
        codes = collections.Counter(a.result(300) for a in asked)
        assert sum(codes.values()) == 1000 and codes[200] > 900, codes
        assert set(codes) <= {200, 429, 500, 502, 503, 504}, codes
        assert ask(address, retries=20) == 200
