"""The corrections to transformers' own server, compared with vLLM and OpenAI: sampling, seeds, stop texts, lengths, errors."""

import asyncio
import json
import re
import shutil
from pathlib import Path

import httpx
import pytest

from serve.by_transformers import Stopped, application

HELLO = {"model": None, "messages": [{"role": "user", "content": "what is red?"}], "max_tokens": 8}


@pytest.fixture(scope="module")
def app(tiny_model):
    HELLO["model"] = tiny_model
    return application(tiny_model, "tiny", "float32", "cpu", None)


def ask(app, *bodies, path="chat/completions") -> list[httpx.Response]:
    """Sends all requests at the same time."""

    async def all_():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as http:
            return await asyncio.gather(*(http.post(f"/v1/{path}", json=b) for b in bodies))

    return asyncio.run(all_())


def text(reply: httpx.Response) -> str:
    if reply.headers["content-type"] == "application/json":
        return reply.json()["choices"][0]["message"]["content"]
    chunks = [json.loads(x.removeprefix("data: ")) for x in reply.text.splitlines() if x.startswith("data: {")]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)


def test_the_temperature_counts_and_the_seed_is_the_requests_own(app):
    """A seed set when a request arrives could be another request's by the time it is used."""
    one, two, greedy = HELLO | {"seed": 1}, HELLO | {"seed": 2}, HELLO | {"temperature": 0}
    together = [text(r) for r in ask(app, one, two, one, two, one | {"stream": True}, greedy)]
    assert together[0] == together[2] and together[1] == together[3]
    assert together[4] and together[0].startswith(together[4])  # half of a character isn't streamed
    assert len({together[0], together[1], together[5]}) == 3
    assert text(ask(app, one)[0]) == together[0]


def test_answers_written_together_are_those_written_alone(app):
    """16 requests of different lengths and settings, which join while others are in progress and leave before them."""
    kinds = (
        {"temperature": 0},
        {"seed": 5},
        {"seed": 6, "top_p": 0.9},
        {"temperature": 0, "logit_bias": {"2": -100, "300": 5}},
    )
    asked = [
        HELLO
        | kinds[i % 4]
        | {"messages": [{"role": "user", "content": "what is " + "red " * i}], "max_tokens": 4 + 3 * i}
        for i in range(16)
    ]
    alone = [text(ask(app, body)[0]) for body in asked]
    assert [text(r) for r in ask(app, *asked)] == alone and len(set(alone)) > 10
    few = application(HELLO["model"], "tiny", "float32", "cpu", None, most=3)
    assert [text(r) for r in ask(few, *asked)] == alone


def test_requests_that_the_batch_cannot_handle_run_alone(app):
    greedy = HELLO | {"temperature": 0, "max_tokens": 24}
    varied = greedy | {"generation_config": '{"no_repeat_ngram_size": 1}'}
    together = [text(r) for r in ask(app, greedy, varied, greedy, varied | {"stream": True})]
    assert together[0] == together[2] == text(ask(app, greedy)[0]) != together[1] == together[3]
    assert together[1] == text(ask(app, varied)[0])


def test_the_answer_ends_before_a_stop_text(app):
    drawn = HELLO | {"seed": 3, "max_tokens": 24}
    whole = text(ask(app, drawn)[0])
    stop = re.search(r"[a-z]{2}", whole[4:])[0]
    stopped = ask(app, drawn | {"stop": [stop, "@@"]}, drawn | {"stop": stop, "stream": True})
    assert {text(r) for r in stopped} == {whole[: whole.index(stop)]} != {""}
    assert stopped[0].json()["choices"][0]["finish_reason"] == "stop"


def test_stop_texts_in_pieces():
    def said(*pieces, stops=("end", "nd of")):
        queue = asyncio.Queue()
        for piece in (*pieces, None):
            queue.put_nowait(piece)
        stopped, out = Stopped(queue, list(stops)), []
        while (item := stopped.get_nowait()) is not None:
            out.append(item)
        return out

    assert said("a b", " en", "d c") == ["a b", " ", ""]
    assert said("an e", "ntry") == ["an ", "entry"]
    assert said("an e") == ["an ", "e"]
    assert said("the end of it", "more") == ["the ", ""]
    assert said("as it is", stops=()) == ["as it is"]


def test_lengths(app, tiny_model):
    """512 tokens of prompt and answer together."""
    long = [{"role": "user", "content": "red " * 600}]
    (reply,) = ask(app, HELLO | {"messages": long})
    assert reply.status_code == 400 and "tokens; with its answer it may have 512." in reply.json()["error"]["message"]
    (reply,) = ask(application(tiny_model, "tiny", "float32", "cpu", 64), HELLO | {"max_tokens": 500, "temperature": 0})
    assert reply.json()["usage"]["total_tokens"] <= 64 and reply.json()["choices"][0]["finish_reason"] == "length"


def test_errors_are_objects_that_clients_know(app, tiny_model, tmp_path):
    for body, says in [
        (HELLO | {"messages": []}, "messages: must be"),
        ({"model": tiny_model}, "messages: must be"),
        (HELLO | {"messages": ["hello"]}, "messages: must be"),
        (HELLO | {"prompt_logprobs": 1}, "prompt_logprobs"),
        (HELLO | {"generation_config": '{"num_beams": 3}'}, "generation_config: beam search"),
        (HELLO | {"generation_config": "{"}, "generation_config: "),
        (HELLO | {"temperature": "warm"}, "temperature: must be"),
        (HELLO | {"temperature": -1}, "temperature: must be"),
        (HELLO | {"top_p": 0}, "top_p: must be"),
        (HELLO | {"max_tokens": 0}, "max_tokens: must be"),
        (HELLO | {"max_tokens": "many"}, "max_tokens: must be"),
        (HELLO | {"seed": 1.5}, "seed: must be"),
        (HELLO | {"stop": [""]}, "stop: must be"),
        (HELLO | {"stop": 5}, "stop: must be"),
        (HELLO | {"logit_bias": {"red": 1}}, "logit_bias: must be"),
        (HELLO | {"logit_bias": {"1024": 1}}, "logit_bias: must be"),
        (HELLO | {"messages": [{"role": "user", "content": 5}]}, "messages: "),
        (HELLO | {"messages": [{"role": "user", "content": [5]}]}, "messages: "),
        (HELLO | {"messages": [{"role": "user", "content": "x", "tool_calls": 5}]}, "messages: "),
        (HELLO | {"tools": 5}, "tools: must be"),
        (HELLO | {"tools": [{}]}, "tools: must be a list of objects, each with a function that has a name"),
        (HELLO | {"n": 0}, "n: must be a whole number of 1 or more"),
        (HELLO | {"n": "2"}, "n: must be"),
        (HELLO | {"logprobs": 0}, "logprobs: must be false"),
        (HELLO | {"top_logprobs": 3}, "top_logprobs: must be 0"),
        (HELLO | {"seed": 2**63}, "seed: must be a whole number of 64 bits"),
        (HELLO | {"max_tokens": -1}, "max_tokens: must be"),
        (HELLO | {"stop": [5]}, "stop: must be"),
        (HELLO | {"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs: must be"),
        (HELLO | {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs: must be"),
        (HELLO | {"generation_config": '{"stop_strings": [5]}'}, "generation_config: stop_strings must be"),
        (HELLO | {"messages": None}, "messages: must be"),
        (HELLO | {"messages": [{"role": "", "content": "x"}]}, "messages: must be"),
        (HELLO | {"messages": [{"role": "user"}]}, "messages: number 0 has no content"),
        (HELLO | {"messages": [{"role": "assistant"}]}, "messages: number 0 has no content"),
        *[
            (
                HELLO | {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]},
                f"is of type {part['type']}, and",
            )
            for part in (
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                {"type": "video_url", "video_url": {"url": "http://127.0.0.1/x"}},
                {"type": "bogus"},
            )
        ],
    ]:
        (reply,) = ask(app, body)
        assert reply.status_code == 400 and says in reply.json()["error"]["message"], reply.text
    for prompt in ("", None, ["a"], 5):
        (reply,) = ask(app, {"model": tiny_model, "prompt": prompt}, path="completions")
        assert reply.status_code == 400 and reply.json()["error"]["message"].startswith("prompt: must be"), reply.text
    strict = shutil.copytree(tiny_model, tmp_path / "strict")
    Path(strict, "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    (reply,) = ask(application(str(strict), "strict", "float32", "cpu", None), HELLO | {"model": str(strict)})
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == "messages: the model's chat template rejects them: roles must alternate"


def test_a_stop_that_is_no_text_at_all_and_parts_of_text_are_answered(app):
    parts = [{"role": "user", "content": [{"type": "text", "text": "what is red?"}]}]
    plain, empty, cut = ask(
        app, *(HELLO | {"temperature": 0} | more for more in ({}, {"stop": []}, {"messages": parts}))
    )
    assert text(plain) == text(empty) == text(cut)


def test_what_a_message_says_beside_its_tool_calls_is_read(app, tiny_model, tmp_path):
    """So are its reasoning and its name, if the template prints them."""
    folder = shutil.copytree(tiny_model, tmp_path / "whole")
    write = "{% for m in messages %}{{ m.role }}{{ m.name }}{{ m.reasoning_content }}{{ m.content }}{% if m.role == 'ipython' %}!{% endif %}\n{% endfor %}"
    Path(folder, "chat_template.jinja").write_text(write)
    served = application(str(folder), "whole", "float32", "cpu", None)
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    said = {"role": "assistant", "tool_calls": [call]}
    sizes = []
    for more in ({}, {"content": "Let me look at the lamp."}, {"reasoning_content": "the lamp"}, {"name": "lamp"}):
        messages = [
            *HELLO["messages"],
            said | more,
            {"role": "ipython", "content": "red"},
        ]  # a role that only the template has
        (reply,) = ask(served, HELLO | {"model": str(folder), "messages": messages})
        assert reply.status_code == 200, reply.text
        sizes.append(reply.json()["usage"]["prompt_tokens"])
    assert all(size > sizes[0] for size in sizes[1:])


def test_what_nobody_waits_for_is_not_written(app):
    endless = HELLO | {"max_tokens": 400, "logit_bias": {"2": -100}}  # token 2 would end the answer

    async def leave():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as http:
            for _ in range(6):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(http.post("/v1/chat/completions", json=endless), 0.05)
            return await asyncio.wait_for(http.post("/v1/chat/completions", json=HELLO | {"max_tokens": 2}), 5)

    assert asyncio.run(leave()).status_code == 200
