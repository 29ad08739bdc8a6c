"""The judge's API: requests that are sent only once, their cost, and an API that is busy, slow, broken, wrong or gone."""

import threading
import time
from dataclasses import replace

import pytest

from lib.evals.evaluate import evaluate
from lib.evals.job import EvalJob
from lib.evals.judging import openai_client
from lib.evals.judging.openai_client import Judge, Unreachable
from lib.evals.plan import plan
from tests.evals.api import better, talk


def test_asked_once_paid_once_and_no_key_anywhere(api, panel, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    server = api(better)
    pairs = [(talk(f"question {i}", "good"), talk(f"question {i}", "bad")) for i in range(5)]
    first = panel(server.judge())
    shares = [p.share for p in first.compare(pairs)]
    second = panel(server.judge())
    assert [p.share for p in second.compare(pairs * 2)] == shares * 2
    assert len(server.asked) == 10 and server.keys == {"Bearer sk-very-secret"}
    spent = first.endpoint.spent()
    assert (spent["tokens_in"], spent["tokens_out"], spent["usd"]) == (1000, 100, pytest.approx(0.0012))
    assert second.endpoint.spent() | {"cached": 10, "usd": 0.0, "tokens_in": 0} == second.endpoint.spent()
    assert "secret" not in "".join(p.read_text() for p in (tmp_path / "run").rglob("*.json"))


def test_a_damaged_verdict_is_asked_again(api, panel, tmp_path):
    server = api(better)
    pairs = [(talk("q", "good"), talk("q", "bad"))]
    panel(server.judge()).compare(pairs)
    for file in (tmp_path / "run" / "verdicts").iterdir():
        file.write_text(file.read_text()[:7])
    assert panel(server.judge()).compare(pairs)[0].share == 1.0 and len(server.asked) == 4


def test_busy_slow_and_broken_replies_are_asked_again(api, panel):
    """429 with Retry-After, a 500 and a late reply, then an answer: the verdict is there."""
    misses = iter([(429, {"retry-after": "1"}), (500, {}), "late"])
    lock = threading.Lock()

    def say(prompt):
        with lock:
            miss = next(misses, None)
        if miss == "late":
            time.sleep(1.5)
        return better(prompt) if miss in (None, "late") else miss

    server = api(say)
    began = time.time()
    assert panel(server.judge(timeout_s=0.8, at_once=1)).compare([(talk("q", "good"), talk("q", "bad"))])[0].share == 1
    assert len(server.asked) == 5 and time.time() - began >= 1


def test_no_answer_at_all_is_counted_and_then_the_end(api, panel, monkeypatch):
    monkeypatch.setattr(openai_client, "TRIES", 1)
    some = panel(api(lambda p: (503, {}) if "question 1" in p else better(p)).judge())
    pairs = [(talk(f"question {i}", "good"), talk(f"question {i}", "bad")) for i in range(4)]
    assert [p.share for p in some.compare(pairs)] == [1.0, None, 1.0, 1.0] and some.endpoint.spent()["failed"] == 2
    gone = panel(replace(api(lambda p: (503, {})).judge(), model="another"))  # no reply of this model is stored
    with pytest.raises(Unreachable, match=r"8 questions in a row got no answer.*HTTP 503"):
        gone.compare(pairs * 3)


def test_a_question_that_the_api_refuses_is_left_out(api, panel):
    """For example, one that is too long for the judge: the other questions are answered."""
    some = panel(api(lambda p: (400, {}) if "question 1" in p else better(p)).judge())
    pairs = [(talk(f"question {i}", "good"), talk(f"question {i}", "bad")) for i in range(4)]
    assert [p.share for p in some.compare(pairs)] == [1.0, None, 1.0, 1.0]


def test_closing_ends_the_waiting(api, panel):
    """Another task failed: queued requests aren't sent, retries stop, and waiting callers get an error."""
    server = api(lambda p: (503, {"retry-after": "60"}))
    ours = panel(server.judge(at_once=2))
    threading.Timer(1.0, ours.endpoint.close).start()
    began = time.time()
    with pytest.raises(Unreachable, match="not asked any more"):
        ours.compare([(talk(f"question {i}", "good"), talk(f"question {i}", "bad")) for i in range(9)])
    assert time.time() - began < 60 and len(server.asked) <= 4  # before the retry
    with pytest.raises(Unreachable, match="not asked any more"):
        ours.compare([(talk("q", "good"), talk("q", "bad"))])


def test_a_refused_key_stops_at_once(api, panel):
    server = api(lambda p: (401, {}))
    with pytest.raises(Unreachable, match="HTTP 401"):
        panel(server.judge(at_once=1)).compare([(talk(f"{i}", "a"), talk(f"{i}", "b")) for i in range(20)])
    assert len(server.asked) < 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "localhost:8000"}, r"judge.url: 'localhost:8000' is no http"),
        ({"url": "https://u:p@x.org/v1"}, r"judge.url: holds a secret"),
        ({"model": ""}, r"judge.model: say which"),
        ({"model": "some/where/sft"}, r"runs.sft: the report calls the judge sft too"),
        ({"model": "runs/reward"}, r"judge.model: reward is what a reward run"),
        ({"url": "https://api.example.com/v1", "key_env": "NO_SUCH_KEY"}, r"judge.key_env: .*NO_SUCH_KEY"),
        ({"at_once": 0}, r"judge.at_once: must be above 0"),
        ({"prompts": "nowhere.jsonl"}, r"judge.prompts: there is no file"),
    ],
)
def test_wrong_settings(change, message, runs):
    settings = {"url": "http://127.0.0.1:1/v1", "model": "m"} | change
    with pytest.raises(ValueError, match=message):
        plan(EvalJob(runs={"sft": runs["sft"]}, judge=Judge(**settings)))


def test_nothing_listens(runs, tmp_path):
    job = EvalJob(run=str(tmp_path), runs={"sft": runs["sft"]}, judge=Judge("http://127.0.0.1:9/v1", "m"))
    with pytest.raises(Unreachable, match=r"judge.url: nothing answers at http://127.0.0.1:9/v1"):
        evaluate(plan(job), say=lambda line: None)


def test_a_model_it_does_not_have(api, panel):
    with pytest.raises(Unreachable, match=r"has no refere. Nearest: referee"):
        panel(replace(api(better).judge(), model="refere")).endpoint.check()
