"""A language model as the judge: both orders, what it costs and says about itself, and an API that misbehaves."""

import json
import math
import os
import random
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lib.evals import endpoint, judge, mt_bench, statistics
from lib.evals.endpoint import Endpoint, Judge, Unreachable
from lib.evals.evaluate import evaluate
from lib.evals.job import EvalJob, plan
from lib.evals.judge import Panel, Unreadable
from lib.evals.report import Report
from lib.run import Run


class Api:
    """An OpenAI-compatible server on loopback whose replies a test chooses: say(prompt) → text, or (status, headers)."""

    def __init__(self, say):
        self.say, self.asked, self.keys, api = say, [], set(), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(200, {"data": [{"id": "referee"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                api.asked.append(body)
                api.keys.add(self.headers.get("authorization"))
                said = api.say(body["messages"][-1]["content"])
                if isinstance(said, tuple):
                    return self.reply(said[0], {"error": "no"}, said[1])
                message = {"choices": [{"message": {"content": said}}]}
                self.reply(200, message | {"usage": {"prompt_tokens": 100, "completion_tokens": 10}})

            def reply(self, status, content, headers=()):
                data = json.dumps(content).encode()
                self.send_response(status)
                for k, v in dict(headers).items():
                    self.send_header(k, v)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def judge(self, **settings) -> Judge:
        return Judge(self.url, "referee", **{"usd_per_million_in": 1.0, "usd_per_million_out": 2.0} | settings)


@pytest.fixture
def api():
    """api(say) → Api; closed at the end."""
    made = []

    def make(say) -> Api:
        made.append(Api(say))
        return made[-1]

    yield make
    for a in made:
        a.server.shutdown()
        a.server.server_close()


@pytest.fixture
def panel(tmp_path):
    """panel(Judge) → Panel that keeps its replies in a run of the test's."""
    return lambda j: Panel(j, Endpoint(j, Run(str(tmp_path / "run"))), judge.prompts(j.prompts))


def talk(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def better(prompt: str) -> str:
    """A judge that likes answers with 'good' in them, wherever they stand."""
    a, b = prompt.index("[Assistant A]"), prompt.index("[Assistant B]")
    good = ["good" in prompt[a:b], "good" in prompt[b:]]
    return "Because. " + ("[[C]]" if good[0] == good[1] else "[[A]]" if good[0] else "[[B]]")


def test_both_orders_count(api, panel):
    honest = panel(api(better).judge())
    pairs = [(talk("q", "good"), talk("q", "bad")), (talk("q", "bad one"), talk("q", "good")), (talk("q", "x"),) * 2]
    assert [p.share for p in honest.compare(pairs)] == [1.0, 0.0, 0.5]
    figures = {s.metric: (sum(s.tops), len(s.tops)) for s in honest.honesty()}
    assert figures["orders_agree"] == (3, 3) and figures["ties"] == (1, 3) and figures["readable"] == (3, 3)
    assert figures["longer_won"] == (1, 2)  # "good" is longer than "bad", and shorter than "bad one"


def test_a_judge_that_likes_what_stands_first_decides_nothing_and_shows(api, panel):
    lazy = panel(api(lambda prompt: "[[A]]").judge())
    assert [p.share for p in lazy.compare([(talk("q", "x"), talk("q", "y"))] * 4)] == [0.5] * 4
    figures = {s.metric: s.tops for s in lazy.honesty()}
    assert set(figures["orders_agree"]) == {0.0} and set(figures["first_won"]) == {1.0}


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
    """429 with Retry-After, a 500 and a reply that comes too late, then an answer: the verdict is there."""
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
    monkeypatch.setattr(endpoint, "TRIES", 1)
    some = panel(api(lambda p: (503, {}) if "question 1" in p else better(p)).judge())
    pairs = [(talk(f"question {i}", "good"), talk(f"question {i}", "bad")) for i in range(4)]
    assert [p.share for p in some.compare(pairs)] == [1.0, None, 1.0, 1.0] and some.endpoint.spent()["failed"] == 2
    gone = panel(api(lambda p: (503, {})).judge())
    with pytest.raises(Unreachable, match=r"8 questions in a row got no answer.*HTTP 503"):
        gone.compare(pairs * 3)


def test_a_question_that_the_api_refuses_is_left_out(api, panel):
    """Too long for the judge, say: the other questions are answered."""
    some = panel(api(lambda p: (400, {}) if "question 1" in p else better(p)).judge())
    pairs = [(talk(f"question {i}", "good"), talk(f"question {i}", "bad")) for i in range(4)]
    assert [p.share for p in some.compare(pairs)] == [1.0, None, 1.0, 1.0]


def test_closing_ends_the_waiting(api, panel):
    """Another task failed: what is queued isn't asked, what is being retried stops, and whoever waits is told."""
    server = api(lambda p: (503, {"retry-after": "60"}))
    ours = panel(server.judge(at_once=2))
    threading.Timer(1.0, ours.endpoint.close).start()
    began = time.time()
    with pytest.raises(Unreachable, match="not asked any more"):
        ours.compare([(talk(f"question {i}", "good"), talk(f"question {i}", "bad")) for i in range(9)])
    assert time.time() - began < 20 and len(server.asked) <= 4
    with pytest.raises(Unreachable, match="not asked any more"):
        ours.compare([(talk("q", "good"), talk("q", "bad"))])


def test_a_refused_key_stops_at_once(api, panel):
    server = api(lambda p: (401, {}))
    with pytest.raises(Unreachable, match="HTTP 401"):
        panel(server.judge(at_once=1)).compare([(talk(f"{i}", "a"), talk(f"{i}", "b")) for i in range(20)])
    assert len(server.asked) < 5


def test_nonsense(api, panel):
    """A verdict that can't be read is left out; where most of them are, there is no result but a reason."""
    some = panel(api(lambda p: "I like turtles [A]" if "question 1" in p else better(p)).judge())
    pairs = [(talk(f"question {i}", "good"), talk(f"question {i}", "bad")) for i in range(4)]
    assert [p.share for p in some.compare(pairs)] == [1.0, None, 1.0, 1.0]
    assert sum(next(s for s in some.honesty() if s.metric == "readable").tops) == 3
    with pytest.raises(Unreadable, match=r"8 of 8 verdicts of referee can't be read.*\[\[A\]\].*I like turtles"):
        panel(api(lambda p: "I like turtles").judge()).compare(pairs)


@pytest.mark.parametrize(
    ("text", "found"),
    [("[[A]] no, [[B]]", 0.0), ("so [[C]].", 0.5), ("[A]", None), ("", None), (None, None), ("[[D]]", None)],
)
def test_letters(text, found):
    assert judge._letter(text) == found


@pytest.mark.parametrize(("text", "found"), [("[[7]]", 7.0), ("[[7.5]]/10", 7.5), ("[[11]]", None), ("7", None)])
def test_grades(text, found):
    assert judge._grade(text) == found


def test_prompts_of_a_file_in_mt_benchs_format(api, panel, tmp_path):
    """A file's prompts go before ours, by what they are for; braces in an answer are not fields."""
    rows = [
        {"type": "single", "system_prompt": "S", "prompt_template": "Q {question} A {answer}"},
        {"type": "single", "system_prompt": "M", "prompt_template": "Q {question} R {ref_answer_1} A {answer}"},
        {"type": "single", "system_prompt": "S2", "prompt_template": "{question_1} {answer_1} {question_2} {answer_2}"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    server = api(lambda p: "[[3]]")
    ours = panel(server.judge(prompts=str(tmp_path / "p.jsonl"), at_once=1))
    two = talk("one", "{x}") + talk("two", "y")
    assert ours.grade([talk("q", "{a}"), two]) == [3.0, 3.0]
    assert ours.grade([talk("q", "a"), two], [["r"], ["r", "s"]]) == [3.0, 3.0]
    sent = [tuple(m["content"] for m in body["messages"]) for body in server.asked]
    assert sent[0] == ("S", "Q q A {a}") and sent[1] == ("S2", "one {x} two y") and sent[2] == ("M", "Q q R r A a")
    assert "Correct answers" in sent[3][1]  # two turns with a reference: only ours has one


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1"),
        ('{"type": "trio", "prompt_template": ""}', "not pairwise or single"),
        ('{"type": "pairwise", "prompt_template": "{answer_a}"}', "no {answer_b}"),
        ('{"type": "single", "prompt_template": "{answer"}', "line 1"),
    ],
)
def test_prompts_that_cannot_be_used(line, message, tmp_path):
    (tmp_path / "p.jsonl").write_text(line)
    with pytest.raises(ValueError, match=rf"judge.prompts: .*{message}"):
        judge.prompts(str(tmp_path / "p.jsonl"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "localhost:8000"}, r"judge.url: 'localhost:8000' is no http"),
        ({"url": "https://u:p@x.org/v1"}, r"judge.url: holds a secret"),
        ({"model": ""}, r"judge.model: say which"),
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
        evaluate(job, say=lambda line: None)


def test_a_model_it_does_not_have(api, panel):
    with pytest.raises(Unreachable, match=r"has no refere. Nearest: referee"):
        panel(replace(api(better).judge(), model="refere")).endpoint.check()


def questions(tmp_path) -> str:
    rows = [{"question_id": i, "turns": [f"what is {i}?", "and then?"], "category": "x"} for i in range(3)]
    rows[0]["reference"] = ["zero", "one"]
    path = tmp_path / "question.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_mt_bench_and_win_rate_in_a_report(api, runs, pairs_file, local_ray, tmp_path):
    """Two turns, grades and both orders; a pairs file's chosen answers judged; the page says what the judge is worth."""
    server = api(lambda p: "[[A]]" if "ssistant B" in p else "[[4]]" if "second" in p else "[[8]]")
    job = EvalJob(
        run=str(tmp_path / "e"), runs={k: runs[k] for k in ("sft", "dpo")}, judge=server.judge(),
        tasks=["mt_bench", "win_rate", "preference_accuracy", "arena"],
        task_data={"mt_bench": questions(tmp_path)}, data=replace(EvalJob().data, source=pairs_file, heldout_fraction=0.3),
        limit=3, max_new_tokens=6, dtype="float32",
    )  # fmt: skip
    report = evaluate(job, say=lambda line: None)
    found = {(m.task, m.metric, m.run): m for m in report.metrics}
    for run in job.runs:
        values = [found["mt_bench", name, run].value for name in ("grade", "turn_1", "turn_2")]
        assert values == [6.0, 8.0, 4.0]
    assert found["mt_bench", "win_rate", "dpo"].value == found["win_rate", "win_rate", "dpo"].value == 0.5
    assert found["win_rate", "win_rate_lc", "dpo"].value == pytest.approx(0.5, abs=0.01)
    assert found["preference_accuracy", "preference_accuracy", "referee"].value == 0.5
    assert found["judge", "orders_agree", "referee"].value == 0 and found["judge", "first_won", "referee"].value == 1
    pairs = 3 * 3  # of mt_bench, of the labelled ones, and of win_rate and arena, which ask about the same
    assert found["judge", "orders_agree", "referee"].n == pairs
    second = [b["messages"][-1]["content"] for b in server.asked if "and then?" in b["messages"][-1]["content"]]
    assert second and all("what is" in text for text in second)
    text = Run(job.run).read_text("reports/report.md")
    assert "same verdict in both orders" in text and "judge: referee" in text
    assert any("tokens read, $" in t.detail for t in report.timings)
    asked = len(server.asked)
    again = evaluate(job, say=lambda line: None)
    assert len(server.asked) == asked and [m.value for m in again.metrics] == [m.value for m in report.metrics]


@pytest.mark.parametrize("row", [{"turns": ["one"]}, {"question": "what?"}, {"turns": "ab"}])
def test_questions_that_are_not_two_turns(row, tmp_path):
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"task_data.mt_bench: .*has no turns: \[first, second\]"):
        mt_bench.questions(str(tmp_path / "q.jsonl"), None)


def test_a_judge_is_needed(runs):
    with pytest.raises(ValueError, match=r"judge.url: mt_bench needs a judge"):
        plan(EvalJob(runs={"sft": runs["sft"]}, tasks=["mt_bench"]))


def test_length_control_takes_out_what_length_alone_explains():
    """A judge that likes length: the longer model wins most, and half of them at equal length. One that likes the first
    model, lengths alike: the controlled rate is the plain one. In 200 seeds the interval holds the truth 9 times in 10."""
    rng = random.Random(0)
    longer = [rng.gauss(100, 100) for _ in range(2000)]
    wins = [float(rng.random() < 1 / (1 + math.exp(-3 * math.tanh(d / 100)))) for d in longer]
    e = statistics.length_controlled(wins, longer)
    assert sum(wins) / 2000 > 0.7 and e.low < 0.5 < e.high
    fair = [float(rng.random() < 0.7) for _ in range(2000)]
    assert statistics.length_controlled(fair, [0.0] * 2000).value == pytest.approx(sum(fair) / 2000, abs=1e-3)
    held = 0
    for seed in range(200):
        rng = random.Random(seed)
        wins = [float(rng.random() < 0.6) for _ in range(100)]
        e = statistics.length_controlled(wins, [rng.gauss(0, 50) for _ in wins])
        held += e.low <= 0.6 <= e.high
    assert held >= 180
    assert 0.5 < statistics.length_controlled([1.0] * 5, [0.0] * 5).value < 1


@pytest.mark.slow
def test_a_really_served_model_judges(runs, pairs_file, tiny_model, tmp_path):
    """`transformers serve` behind jobs/eval.py: a tiny model that learned to say [[A]], whatever it reads."""
    served = _says("[[A]]", tiny_model, tmp_path / "referee")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "transformers.cli.transformers",
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    server = subprocess.Popen([*command, "--device", "cpu"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _wait_for(port, server)
        options = [f"--runs.{k}={runs[k]}" for k in ("sft", "dpo")] + [
            "--tasks",
            "win_rate",
            "--data.source",
            pairs_file,
        ]
        options += [
            "--data.heldout_fraction",
            "0.3",
            "--limit",
            "4",
            "--max_new_tokens",
            "4",
            "--judge.max_tokens",
            "8",
        ]
        options += ["--judge.url", f"http://127.0.0.1:{port}/v1", "--judge.model", served, "--run", str(tmp_path / "e")]
        alone = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        done = subprocess.run(
            [sys.executable, "jobs/eval.py", *options], env=alone, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr + done.stdout
    finally:
        server.kill()
        server.wait()
    report = Report.from_json(Run(str(tmp_path / "e")).read_text("reports/report.json"))
    found = {m.metric: m for m in report.metrics}
    assert found["win_rate"].value == 0.5 and found["first_won"].value == 1 and found["readable"].value == 1


def _says(text: str, tiny_model: str, folder) -> str:
    """Trains the tiny model to answer any prompt with `text`; returns its folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tok, model = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(0)
    answer = torch.tensor(tok(text + "<|im_end|>", add_special_tokens=False)["input_ids"])
    start = torch.tensor(tok("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(150):
        ids = torch.cat([torch.randint(10, 1000, (8, 200)), torch.cat([start, answer]).expand(8, -1)], 1)
        labels = ids.clone()
        labels[:, : -len(answer)] = -100
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def _wait_for(port: int, server: subprocess.Popen) -> None:
    give_up = time.time() + 120
    while time.time() < give_up:
        assert server.poll() is None, server.stderr.read().decode()[-2000:]
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise TimeoutError(f"nothing listens on {port}")
