"""A language model as the judge: both orders, its own statistics, the user's prompts, MT-Bench, and a served one."""

import json
import subprocess
from dataclasses import replace

import pytest

from lib.evals.evaluate import evaluate
from lib.evals.job import EvalJob
from lib.evals.judging import llm_judge
from lib.evals.judging.llm_judge import Unreadable
from lib.evals.measures import mt_bench
from lib.evals.plan import plan
from lib.evals.report.schema import Report
from lib.run import Run
from tests import warm
from tests.conftest import free_port, run_job, wait_for_port
from tests.evals.api import better, talk


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


def test_nonsense(api, panel):
    """An unreadable verdict is left out; if most of them are, the result is an error with the reason."""
    some = panel(api(lambda p: "I like turtles [A]" if "question 1" in p else better(p)).judge())
    pairs = [(talk(f"question {i}", "good"), talk(f"question {i}", "bad")) for i in range(4)]
    assert [p.share for p in some.compare(pairs)] == [1.0, None, 1.0, 1.0]
    assert sum(next(s for s in some.honesty() if s.metric == "readable").tops) == 3
    mad = replace(api(lambda p: "I like turtles").judge(), model="turtle")  # another model, of which no reply is stored
    with pytest.raises(Unreadable, match=r"8 of 8 verdicts of turtle can't be read.*\[\[A\]\].*I like turtles"):
        panel(mad).compare(pairs)


@pytest.mark.parametrize(
    ("text", "found"),
    [("[[A]] no, [[B]]", 0.0), ("so [[C]].", 0.5), ("[A]", None), ("", None), (None, None), ("[[D]]", None)],
)
def test_letters(text, found):
    assert llm_judge._letter(text) == found


@pytest.mark.parametrize(("text", "found"), [("[[7]]", 7.0), ("[[7.5]]/10", 7.5), ("[[11]]", None), ("7", None)])
def test_grades(text, found):
    assert llm_judge._grade(text) == found


def test_prompts_of_a_file_in_mt_benchs_format(api, panel, tmp_path):
    """A file's prompts take precedence over ours for the same purpose; braces in an answer are not fields."""
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
    assert "Correct answers" in sent[3][1]  # two turns with a reference: only our prompts have one


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1"),
        ('{"type": "trio", "prompt_template": ""}', "not pairwise, single or refusal"),
        ('{"type": "pairwise", "prompt_template": "{answer_a}"}', "no {answer_b}"),
        ('{"type": "single", "prompt_template": "{answer"}', "line 1"),
    ],
)
def test_prompts_that_cannot_be_used(line, message, tmp_path):
    (tmp_path / "p.jsonl").write_text(line)
    with pytest.raises(ValueError, match=rf"judge.prompts: .*{message}"):
        llm_judge.prompts(str(tmp_path / "p.jsonl"))


def questions(tmp_path) -> str:
    rows = [{"question_id": i, "turns": [f"what is {i}?", "and then?"], "category": "x"} for i in range(3)]
    rows[0]["reference"] = ["zero", "one"]
    path = tmp_path / "question.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


@pytest.mark.slow
def test_mt_bench_and_win_rate_in_a_report(api, runs, pairs_file, local_ray, tmp_path):
    """Two turns, grades and both orders; a pairs file's chosen answers judged; the page shows the judge's reliability."""
    server = api(lambda p: "[[A]]" if "ssistant B" in p else "[[4]]" if "second" in p else "[[8]]")
    job = EvalJob(
        run=str(tmp_path / "e"), runs={k: runs[k] for k in ("sft", "dpo")}, judge=server.judge(),
        tasks=["mt_bench", "win_rate", "preference_accuracy", "arena"],
        task_data={"mt_bench": questions(tmp_path)}, data=replace(EvalJob().data, source=pairs_file, heldout_fraction=0.3),
        limit=3, max_new_tokens=6, dtype="float32",
    )  # fmt: skip
    report = evaluate(plan(job), say=lambda line: None)
    found = {(m.task, m.metric, m.run): m for m in report.metrics}
    for run in job.runs:
        values = [found["mt_bench", name, run].value for name in ("grade", "turn_1", "turn_2")]
        assert values == [6.0, 8.0, 4.0]
    assert found["mt_bench", "win_rate", "dpo"].value == found["win_rate", "win_rate", "dpo"].value == 0.5
    assert found["win_rate", "win_rate_lc", "dpo"].value == pytest.approx(0.5, abs=0.01)
    assert found["preference_accuracy", "preference_accuracy", "referee"].value == 0.5
    assert found["judge", "orders_agree", "referee"].value == 0 and found["judge", "first_won", "referee"].value == 1
    pairs = 3 * 3  # mt_bench, the labelled pairs, and win_rate and arena, which ask the same questions
    assert found["judge", "orders_agree", "referee"].n == pairs
    second = [b["messages"][-1]["content"] for b in server.asked if "and then?" in b["messages"][-1]["content"]]
    assert second and all("what is" in text for text in second)
    text = Run(job.run).read_text("reports/report.md")
    assert "same verdict in both orders" in text and "judge: referee" in text
    assert any("tokens read, $" in t.detail for t in report.timings)
    asked = len(server.asked)
    again = evaluate(plan(job), say=lambda line: None)
    assert len(server.asked) == asked and [m.value for m in again.metrics] == [m.value for m in report.metrics]


@pytest.mark.parametrize("row", [{"turns": ["one"]}, {"question": "what?"}, {"turns": "ab"}])
def test_questions_that_are_not_two_turns(row, tmp_path):
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"task_data.mt_bench: .*has no turns: \[first, second\]"):
        mt_bench.questions(str(tmp_path / "q.jsonl"), None)


def test_a_judge_is_needed(runs):
    with pytest.raises(ValueError, match=r"judge.url: mt_bench needs a judge"):
        plan(EvalJob(runs={"sft": runs["sft"]}, tasks=["mt_bench"]))


@pytest.mark.slow
def test_a_really_served_model_judges(runs, pairs_file, tiny_model, tmp_path):
    """`transformers serve` behind jobs/eval.py: a tiny model trained to answer [[A]] to everything."""
    served = _says("[[A]]", tiny_model, tmp_path / "referee")
    port = free_port()
    command = [
        warm.python(),
        "-m",
        "transformers.cli.transformers",
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    server = subprocess.Popen([*command, "--device", "cpu"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    options = [f"--runs.{k}={runs[k]}" for k in ("sft", "dpo")]
    options += ["--tasks", "win_rate", "--data.source", pairs_file, "--data.heldout_fraction", "0.3", "--limit", "4"]
    options += ["--max_new_tokens", "4", "--judge.max_tokens", "8", "--judge.model", served]
    options += ["--judge.url", f"http://127.0.0.1:{port}/v1", "--run", str(tmp_path / "e")]
    try:
        wait_for_port(port, server)
        done = run_job("eval", *options)
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
