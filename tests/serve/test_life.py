"""`serve run` of the real application: its only replica is killed, and it is told to stop while long answers are in progress."""

import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.http import http
from tests.serve.conftest import replicas, serving

ASKED = {"messages": [{"role": "user", "content": "what is red?"}], "temperature": 0}
ENDLESS = ASKED | {"logit_bias": {"4": 100}}
"""Every token is a "!": none ends the answer, and each has text, without which a stream sends no event."""


@pytest.fixture(scope="module")
def patient(tiny_model, tmp_path_factory) -> str:
    """The tiny model with room for long answers."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = str(tmp_path_factory.mktemp("patient"))
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(tiny_model)
    model.config = LlamaConfig.from_pretrained(tiny_model, max_position_embeddings=32768)
    model.save_pretrained(folder)
    return folder


def args(folder: str) -> dict:
    return {"run": folder, "name": "it", "engine": "transformers", "dtype": "float32", "timeout_s": 600}


def whole(url: str, tokens: int, sent: threading.Event | None = None) -> httpx.Response:
    """sent: set once the server has received the whole request."""

    def trace(name, info):
        if sent and name == "http11.send_request_body.complete":
            sent.set()

    with httpx.Client(timeout=600) as client:
        asked = ENDLESS | {"max_tokens": tokens}
        return client.post(f"{url}/chat/completions", json=asked, extensions={"trace": trace})


def both(pool: ThreadPoolExecutor, url: str, tokens: int) -> tuple[Future, Future]:
    """Returns a streamed answer and one in one piece, once both are in progress."""
    sent, begun = threading.Event(), []
    one = pool.submit(whole, url, tokens, sent)
    wait_for(sent.is_set)
    stream = pool.submit(streamed, url, tokens, begun)
    wait_for(lambda: begun)  # the other request was sent before
    return stream, one


def streamed(url: str, tokens: int, begun: list) -> str:
    """Returns the last event of a stream; `begun` gets an item for each event."""
    last = ""
    asked = ENDLESS | {"max_tokens": tokens, "stream": True}
    with http.stream("POST", f"{url}/chat/completions", json=asked, timeout=600) as reply:
        for line in reply.iter_lines():
            if line:
                last = line
                begun.append(line)
    return last


def tokens_in(url: str, seconds: float) -> int:
    """Returns about the number of tokens that are generated in that time."""
    began = time.monotonic()
    assert whole(url, 300).json()["usage"]["completion_tokens"] == 300
    return min(32000, int(300 * seconds / (time.monotonic() - began)))


def wait_for(what) -> None:
    give_up = time.monotonic() + 300
    while not what():
        assert time.monotonic() < give_up
        time.sleep(0.1)


@pytest.mark.slow
def test_a_killed_replica_is_replaced_and_sigterm_lets_answers_end(patient, tmp_path):
    began = time.monotonic()
    with serving(tmp_path, args(patient)) as (url, process), ThreadPoolExecutor(3) as pool:
        start = time.monotonic() - began
        cut, refused = both(pool, url, 30000)
        (replica,) = replicas(process)
        replica.kill()
        killed = time.monotonic()
        with pytest.raises(httpx.RemoteProtocolError):
            cut.result()
        assert refused.result().status_code == 503 and int(refused.result().headers["retry-after"]) > 0
        assert refused.result().json()["error"]["message"].startswith("No replica could answer: ")
        wait_for(lambda: _answered(url))
        back = time.monotonic() - killed
        print(f"started in {start:.0f} s; {back:.0f} s after its replica was killed it answers again")
        assert back < start + 15

        many = tokens_in(url, 12)
        answers = both(pool, url, many)
        (replica,) = replicas(process)
        process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        # The answers can't end before the alarm of Ray's handler, at 3 s, however fast the machine has become since tokens_in().
        replica.suspend()
        wait_for(lambda: _refused(url))
        wait_for(lambda: time.monotonic() - told > 4)
        replica.resume()
        assert (
            '"finish_reason":"length"' in answers[0].result() and f'"completion_tokens":{many}' in answers[0].result()
        )
        assert answers[1].result().json()["usage"]["completion_tokens"] == many
        print(f"answers of {many} tokens ended {time.monotonic() - told:.0f} s after SIGTERM")
        assert process.wait(60) in (143, None)  # None: psutil can't get the exit code of a process that isn't its child
        assert "Finishing the answers under way" in Path(tmp_path, "log").read_text()


def _ask(url: str, timeout: float = 300) -> httpx.Response:
    return http.post(f"{url}/chat/completions", json=ASKED | {"max_tokens": 2}, timeout=timeout)


def _refused(url: str) -> bool:
    """Whether a new request gets 503. One that comes before the server has noticed the signal may be waiting for the replica."""
    try:
        late = _ask(url, timeout=2)
    except httpx.TimeoutException:
        return False
    return late.status_code == 503 and bool(late.headers["retry-after"])


def _answered(url: str) -> bool:
    """Returns whether the request is answered; otherwise it must be refused with Retry-After."""
    reply = _ask(url)
    assert reply.status_code == 200 or (reply.status_code == 503 and reply.headers["retry-after"]), reply.text
    return reply.status_code == 200


@pytest.mark.slow
def test_a_second_signal_ends_at_once(patient, tmp_path):
    with serving(tmp_path, args(patient)) as (url, process), ThreadPoolExecutor(1) as pool:
        begun: list = []
        cut = pool.submit(streamed, url, 30000, begun)
        wait_for(lambda: begun)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: "Finishing the answers under way" in Path(tmp_path, "log").read_text())
        said = len(begun)
        wait_for(lambda: cut.done() or len(begun) > said + 3)
        assert not cut.done(), cut.result()  # it continues
        process.send_signal(signal.SIGINT)
        told = time.monotonic()
        process.wait(60)
        with pytest.raises(httpx.RemoteProtocolError):
            cut.result()
        print(f"ended {time.monotonic() - told:.0f} s after the second signal")
