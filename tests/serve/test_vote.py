"""Votes: blind, resumable, counted correctly, with pairs for training; and the page by keyboard in a real browser."""

import json
import subprocess
from contextlib import contextmanager

import pytest

from lib.run import Run
from serve import vote
from serve.votes import Box, ballots, fleiss_kappa
from tests import warm
from tests.conftest import REPO, free_port, run_job, wait_for_port
from tests.serve.tab import tab

PAIR = ("sft", "dpo")


@pytest.fixture
def evaluated(tmp_path) -> Run:
    """An evaluation of two runs on 12 prompts; dpo's answers contain good, sft's bad, and two are the same."""
    run = Run(str(tmp_path / "eval"))
    rows = []
    for i in range(12):
        prompt = [{"role": "user", "content": f"what is the red lamp {i}? <b>&"}]
        common = {"task": "demo", "decoding": "greedy", "id": f"demo-{i}", "prompt": prompt, "reference": None}
        for name, word in zip(PAIR, ("bad", "good") if i < 10 else ("same", "same"), strict=True):
            rows.append({**common, "run": name, "answer": f"the lamp is {word} {i}.", "scores": {}})
    run.write_text("reports/examples.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    return run


def box(run: Run) -> Box:
    return Box(run, PAIR, ballots(run, PAIR))


def side_of(b: Box, rater: str, ballot, word: str) -> str:
    """Returns the side on which the rater sees the answer with `word`."""
    first = word in ballot.answers[0]
    return "left" if first == b.first_on_left(rater, ballot.id) else "right"


def test_same_answers_are_not_asked_and_sides_are_mixed(evaluated):
    b = box(evaluated)
    assert len(b.ballots) == 10
    for rater in ("ann", "bob"):
        assert 1 <= sum(b.first_on_left(rater, x.id) for x in b.ballots) <= 9
    assert any(b.first_on_left("ann", x.id) != b.first_on_left("bob", x.id) for x in b.ballots)


def test_votes_count_for_the_answer_whatever_its_side(evaluated):
    b = box(evaluated)
    while ballot := b.next("ann"):
        b.vote("ann", ballot.id, side_of(b, "ann", ballot, "good"))
    won = b.win_rate()
    assert (won.value, won.n) == (1.0, 10) and won.low > 0.7
    rows = [json.loads(line) for line in evaluated.read_text("pairs.jsonl").splitlines()]
    assert len(rows) == 10
    assert all("good" in r["chosen"][0]["content"] and "bad" in r["rejected"][0]["content"] for r in rows)


def test_goes_on_after_a_restart_and_takes_back(evaluated):
    b = box(evaluated)
    first, second = b.ballots[:2]
    b.vote("ann", first.id, "tie")
    b.vote("ann", second.id, "left")
    again = box(evaluated)
    assert again.votes == b.votes and again.next("ann") == b.ballots[2] and again.last("ann") == second.id
    again.vote("ann", second.id, "undo")
    assert again.next("ann") == second and box(evaluated).votes == again.votes
    assert again.pairs() == [] and again.win_rate().value == 0.5


def test_raters_who_disagree_make_no_pair(evaluated):
    b = box(evaluated)
    for ballot in b.ballots:
        b.vote("ann", ballot.id, side_of(b, "ann", ballot, "good"))
        b.vote("bob", ballot.id, side_of(b, "bob", ballot, "good" if ballot.id.split()[1] < "demo-5" else "bad"))
    assert len(b.pairs()) == 5 and b.win_rate().value == 0.75
    kappa, n = b.agreement()
    assert n == 10 and kappa == pytest.approx((0.5 - 0.625) / 0.375)


def test_fleiss_kappa():
    """The worked example of Fleiss 1971 as tabulated in Wikipedia: 10 items, 14 raters, 5 categories."""
    table = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert fleiss_kappa(table) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa([[2, 0], [0, 2]]) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run", "nowhere", "--pair", "a", "b"], "--run: .*nowhere has no reports/examples.jsonl"),
        (["--pair", "sft", "dpp"], r"--pair: dpp has no answers in .*Nearest: dpo"),
        (["--pair", "sft", "dpo", "--task", "dem"], r"--task: dem is not in .*Nearest: demo"),
        (["--pair", "sft", "sft"], "--pair: sft and sft have no differing answers"),
    ],
)
def test_wrong_requests(options, message, evaluated, capsys):
    import re

    with pytest.raises(SystemExit) as stopped:
        vote.main(["--run", evaluated.path, *options])
    assert stopped.value.code == 2 and re.search(message, capsys.readouterr().err.replace("\n", " "))


def test_what_the_page_is_told_names_no_run_and_what_it_sends_is_checked(evaluated):
    from starlette.testclient import TestClient

    b = box(evaluated)
    client = TestClient(vote.app(b), base_url="http://127.0.0.1")
    shown = client.get("/next?rater=ann").json()
    assert shown["total"] == 10 and set(shown["ballot"]) == {"id", "prompt", "left", "right"}
    assert not {"sft", "dpo"} & set(json.dumps(shown).replace('"', " ").split())
    good = {"rater": "ann", "id": shown["ballot"]["id"], "vote": "left"}
    assert client.post("/vote", json=good).json()["done"] == 1
    for body, said in (({**good, "id": "x"}, "no ballot"), ({**good, "vote": "up"}, "not one of"), ({}, "rater")):
        refused = client.post("/vote", json=body)
        assert refused.status_code == 400 and said in refused.json()["error"]
    assert client.post("/vote", content=json.dumps(good), headers={"content-type": "text/plain"}).status_code == 415
    assert client.post("/vote", content="{", headers={"content-type": "application/json"}).status_code == 400
    assert client.get("/next", headers={"host": "evil.example"}).status_code == 400
    assert len(b.votes) == 1


@pytest.mark.slow
def test_by_keyboard_in_a_browser_and_the_votes_train_a_reward_model(evaluated, browser, tiny_model, tmp_path):
    """Arrow keys vote, u undoes, a restart in the middle loses nothing; jobs/reward.py can train on pairs.jsonl directly."""
    with _server(evaluated) as port, tab(browser, f"http://127.0.0.1:{port}/?rater=ann", tmp_path / "a") as page:
        assert page.wait("$('count').textContent === '0 of 10'")
        assert page.value("$('talk').innerHTML").count("&lt;b&gt;") == 1  # text, not markup
        for done in range(1, 6):
            page.key("ArrowLeft" if "good" in page.value("$('left').textContent") else "ArrowRight")
            assert page.wait(f"$('count').textContent === '{done} of 10'")
        page.key("u")
        assert page.wait("$('count').textContent === '4 of 10'")
    with _server(evaluated) as port, tab(browser, f"http://127.0.0.1:{port}/?rater=ann", tmp_path / "b") as page:
        assert page.wait("$('count').textContent === '4 of 10'")
        for done in range(5, 11):
            page.key("ArrowLeft" if "good" in page.value("$('left').textContent") else "ArrowRight")
            assert page.wait(f"$('count').textContent === '{done} of 10'")
        assert page.wait("$('said').textContent.startsWith('That was the last')")
        assert page.errors == []
    assert box(evaluated).win_rate().value == 1.0
    options = [
        "--model.base",
        tiny_model,
        "--data.source",
        evaluated.at("pairs.jsonl"),
        "--data.heldout_fraction",
        "0.2",
    ]
    options += [
        "--train.max_steps",
        "2",
        "--scale.global_batch",
        "4",
        "--scale.micro_batch",
        "4",
        "--run",
        str(tmp_path / "r"),
    ]
    done = run_job("reward", *options)
    assert done.returncode == 0, done.stderr + done.stdout
    assert Run(str(tmp_path / "r")).finished()


@contextmanager
def _server(run: Run):
    port = free_port()
    command = [warm.python(), "-m", "serve.vote", "--run", run.path, "--pair", *PAIR, "--port", str(port)]
    process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)
    try:
        wait_for_port(port, process)
        yield port
    finally:
        process.kill()  # votes are kept nevertheless
        process.wait()
