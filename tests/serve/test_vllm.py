"""Features that only vLLM serves, each compared with transformers on the same tiny model: LoRA runs added later, a draft, embeddings;
and its server under a flood of requests, at the death of its engine, and at SIGTERM.

One `serve run` serves all tests that need no other engine, in file order: the last one stops it.
"""

import asyncio
import collections
import json
import multiprocessing
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import openai
import psutil
import pytest

from lib.generation.sampling import Sampling
from lib.generation.transformers_generator import TransformersGenerator
from lib.run import Run
from serve import engines
from serve.serving import parse, plan
from tests import warm
from tests.conftest import sign
from tests.http import http
from tests.serve.conftest import serving
from tests.throttle import throttled

pytestmark = [pytest.mark.slow, pytest.mark.vllm]
PROMPTS = [[{"role": "user", "content": f"what is {w}?"}] for w in ("lamp", "the red table", "a garden near the river")]


@pytest.fixture(scope="module", autouse=True)
def spawned_from_the_warm_python():
    """vLLM spawns the processes of its engines with Python's multiprocessing."""
    multiprocessing.set_executable(warm.python())
    yield
    multiprocessing.set_executable(sys.executable)


@pytest.fixture(scope="module")
def wide(tiny_model, tmp_path_factory) -> str:
    """The tiny model with heads of 32, since vLLM's attention for CPUs doesn't support 16, and with wide layers, which slow it down: on a
    busy machine, an answer at hundreds of tokens a second held up other requests in Ray Serve, some until its end."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = str(tmp_path_factory.mktemp("wide"))
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    torch.manual_seed(0)
    # initializer_range: with smaller weights it repeats the same token. max_position_embeddings: room for long answers.
    wild = {"head_dim": 32, "initializer_range": 0.3, "max_position_embeddings": 16384, "intermediate_size": 32768}
    LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_model, **wild)).save_pretrained(folder)
    return folder


def lora(base: str, where: Path, seed: int, r: int = 8) -> Run:
    """Returns a finished LoRA run of `base` with a random adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    config = LoraConfig(r=r, init_lora_weights=False, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    run = Run(str(where))
    model.save_pretrained(run.at("adapter"))
    model.merge_and_unload().save_pretrained(run.at("model"))
    AutoTokenizer.from_pretrained(base).save_pretrained(run.at("model"))
    run.write_json("job.yaml", {"run": run.path, "stage": "sft", "model": {"base": base, "adapter": "lora"}})
    run.write_json("provenance.json", {"status": "finished"})
    sign(run)
    return run


def answers(url: str, model: str) -> list[list[int]]:
    """Returns the tokens of the greedy answers."""
    api = openai.OpenAI(base_url=url, api_key="-", max_retries=0, timeout=120)
    how = {"max_tokens": 12, "temperature": 0, "extra_body": {"return_token_ids": True}}
    said = [api.chat.completions.create(model=model, messages=p, **how) for p in PROMPTS]
    assert {s.model for s in said} == {model}
    return [s.choices[0].token_ids for s in said]


def expected(folder: str) -> list[list[int]]:
    """Returns transformers' answers."""
    return [list(a[0].tokens) for a in TransformersGenerator(folder).generate(PROMPTS, Sampling(max_new_tokens=12))]


@pytest.fixture(scope="module")
def root(wide, tmp_path_factory) -> Path:
    """The folder of runs, with one run in it."""
    made = tmp_path_factory.mktemp("runs")
    lora(wide, made / "early", seed=1)
    return made


@pytest.fixture(scope="module")
def server(wide, root, tmp_path_factory):
    """(the API's address, the process of `serve run`)"""
    args = {"run": wide, "name": "base", "adapters_from": root, "dtype": "float32", "at_once": 16, "timeout_s": 600}
    with serving(tmp_path_factory.mktemp("serve"), args) as found:
        yield found


@asynccontextmanager
async def engine(**args):
    """Returns an HTTP client for vLLM's application, without the server around it."""
    started = await engines.vllm(plan(parse(args)))
    try:
        transport = httpx.ASGITransport(app=started.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x", timeout=300) as client:
            yield client
    finally:
        started.close()


def test_lora_runs_are_found_when_they_are_asked_for(wide, root, server, tmp_path):
    url, _ = server
    early = Run(str(root / "early"))
    outside = lora(wide, tmp_path / "outside", seed=2)
    api = openai.OpenAI(base_url=url, api_key="-", max_retries=0)
    assert [m.id for m in api.models.list().data] == ["base", "early"]
    assert answers(url, "early") == expected(early.at("model")) != expected(wide)
    assert answers(url, "base") == expected(wide)
    with pytest.raises(openai.NotFoundError, match=r"no model 'erly' here. Nearest: early. It has base, early"):
        answers(url, "erly")
    late = lora(wide, root / "late", seed=3)  # after the server started
    assert answers(url, "late") == expected(late.at("model")) != expected(early.at("model"))
    for path in ("../outside", outside.path, outside.at("adapter")):
        with pytest.raises(openai.NotFoundError):
            answers(url, path)
    route = {"lora_name": "x", "lora_path": outside.at("adapter"), "model": "base"}
    assert http.post(f"{url}/load_lora_adapter", json=route).status_code == 404
    high = lora(wide, root / "high", seed=6, r=128)
    with pytest.raises(openai.BadRequestError, match="high has rank 128, and there is room for 64"):
        answers(url, high.name)
    shutil.rmtree(high.path)
    broken = lora(wide, root / "broken", seed=4)
    Path(broken.at("adapter/adapter_model.safetensors")).write_bytes(b"nothing")
    with pytest.raises(openai.BadRequestError, match="'broken' was found but could not be loaded"):
        answers(url, "broken")
    assert [m.id for m in api.models.list().data] == ["base", "early", "late", "broken"]


def test_bodies_that_no_engine_is_given(server):
    for body in (b"[" * 100_000, b'{"seed": 1e999}', b'{"prompt": "\\ud800"}', b'{"model": "\xff"}'):
        reply = http.post(f"{server[0]}/completions", content=body)
        assert reply.status_code == 400 and reply.json()["error"]["code"] == 400, reply.text


def test_a_flood_waits_its_turn(server):
    """96 requests at once: 16 are answered and 64 wait, so at most 16 get 429, and then get their answer."""
    with ThreadPoolExecutor(96) as pool:
        codes = collections.Counter(r.status_code for r in pool.map(lambda _: write(server[0], 8), range(96)))
        assert set(codes) <= {200, 429} and codes[200] >= 80, codes
        api = openai.OpenAI(base_url=server[0], api_key="-", timeout=300)  # retries up to three times
        said = list(pool.map(lambda _: api.completions.create(model="base", prompt="the red", max_tokens=8), range(96)))
        assert len(said) == 96


def write(url: str, tokens: int) -> httpx.Response:
    asked = {"model": "base", "prompt": "the red", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return http.post(f"{url}/completions", json=asked, timeout=600)


def stream(url: str, tokens: int, begun: list) -> list[str]:
    """Returns the lines of a stream; `begun` is the same list, growing."""
    asked = {
        "model": "base",
        "prompt": "the red",
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    with http.stream("POST", f"{url}/completions", json=asked, timeout=600) as reply:
        for line in reply.iter_lines():
            if line:
                begun.append(line)
    return begun


def running(url: str) -> float:
    """Returns the number of requests that vLLM is answering, by its own count."""
    lines = http.get(url.replace("/v1", "/metrics"), timeout=60).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running"))


def wait_for(what) -> None:
    give_up = time.monotonic() + 300
    while not what():
        assert time.monotonic() < give_up
        time.sleep(0.1)


def test_an_engine_that_is_killed_is_replaced(server, wide):
    """No request hangs: those in progress and new ones are refused with Retry-After, until the engine answers as before."""
    url, process = server
    begun: list = []
    with ThreadPoolExecutor(2) as pool:
        cut, refused = pool.submit(stream, url, 16000, begun), pool.submit(write, url, 16000)
        wait_for(lambda: begun and running(url) == 2)
        (core,) = [p for p in warm.tree(process) if "EngineCore" in p.name()]
        core.kill()
        killed = time.monotonic()
        end = "".join(cut.result()[-2:])
        # An error, or the abort with which vLLM ends its dead engine's streams; never the end of a complete answer.
        assert "error" in end or '"finish_reason":"abort"' in end, end
        replies = [refused.result(), write(url, 2)]
    assert [r.status_code for r in replies] == [503, 503] and all(int(r.headers["retry-after"]) > 0 for r in replies)
    assert replies[1].json()["error"]["message"].startswith("The engine stopped and is being restarted. Try again in ")
    assert http.get(url.replace("/v1", "/health")).status_code == 503

    def answered() -> bool:
        began = time.monotonic()
        reply = write(url, 2)
        assert reply.status_code in (200, 503) and time.monotonic() - began < 60, reply.text
        return reply.status_code == 200

    wait_for(answered)
    print(f"answers again {time.monotonic() - killed:.0f} s after its engine was killed")
    assert psutil.pid_exists(process.pid) and answers(url, "base") == expected(wide)
    assert answers(url, "early") != expected(wide)  # loaded again


def timed(url: str, tokens: int) -> float:
    """Returns the seconds that an answer of so many tokens takes."""
    began = time.monotonic()
    assert write(url, tokens).json()["usage"]["completion_tokens"] == tokens
    return time.monotonic() - began


def test_sigterm_lets_answers_end(server):
    url, process = server
    begun: list = []
    with (
        throttled((p.pid for p in warm.tree(process)), ("VLLM::EngineCore", "VLLM::Worker")),
        ThreadPoolExecutor(2) as pool,
    ):
        fastest = min(timed(url, 40) for _ in range(4))  # any one may have waited for other programs
        many = min(16000, int(40 * 20 / fastest))
        streamed, whole = pool.submit(stream, url, many, begun), pool.submit(write, url, many)
        wait_for(lambda: begun and running(url) == 2)
        process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        assert whole.result().json()["usage"]["completion_tokens"] == many
        assert streamed.result()[-1] == "data: [DONE]" and '"finish_reason":"length"' in streamed.result()[-2]
        print(f"answers of {many} tokens ended {time.monotonic() - told:.0f} s after SIGTERM")
        assert time.monotonic() - told > 4  # later than the alarm of Ray's handler, at 3 s
    process.wait(60)


def test_a_draft_changes_no_answer(wide, tmp_path):
    student = lora(wide, tmp_path / "student", seed=5)

    async def both():
        how = {"model": "base", "max_tokens": 12, "temperature": 0, "return_token_ids": True}
        async with engine(run=wide, name="base", draft=student.path, draft_tokens=3, dtype="float32") as client:
            said = [await client.post("/v1/chat/completions", json=how | {"messages": p}) for p in PROMPTS]
            return [s.json()["choices"][0]["token_ids"] for s in said], (await client.get("/metrics")).text

    said, metrics = asyncio.run(both())
    assert said == expected(wide)
    counted = {line.split("{")[0]: float(line.split()[-1]) for line in metrics.splitlines() if "spec_decode" in line and line[0] != "#"}  # fmt: skip
    assert counted["vllm:spec_decode_num_draft_tokens_total"] == 3 * counted["vllm:spec_decode_num_drafts_total"] > 0


def test_vectors(wide, tmp_path):
    """The whole ones, and those shortened to lengths that config.json lists, as jobs/embed.py writes it."""
    from serve.embedding import Embedder

    wide = str(shutil.copytree(wide, tmp_path / "wide"))
    config = tmp_path / "wide/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"matryoshka_dimensions": [16]}))
    texts = ["the red lamp", "a stone near the river"]

    async def vectors():
        async with engine(run=wide, name="base", task="embed", dtype="float32") as client:
            asked = [{"model": "base", "input": texts} | more for more in ({}, {"dimensions": 16}, {"dimensions": 8})]
            whole, short, wrong = [await client.post("/v1/embeddings", json=each) for each in asked]
            assert wrong.status_code == 400 and "16" in wrong.text
            return [np.array([d["embedding"] for d in reply.json()["data"]]) for reply in (whole, short)]

    embedder = Embedder(wide, "float32", "cpu")
    for found, width in zip(asyncio.run(vectors()), (None, 16), strict=True):
        assert np.abs(found - np.array(embedder.vectors(embedder.read(texts), width))).max() < 1e-4
