"""load: the rows on disk, the same on every worker; the split, the tools, the cache."""

import json
import subprocess
import sys

import pytest

from lib.config.job import Data
from lib.data import check, load, per_answer
from tests.conftest import PATIENCE
from tests.data.conftest import CHAT, qa, qa_chats, questions

pytestmark = pytest.mark.usefixtures("cache")


def test_share_is_held_out_by_prompt(write):
    """The literal rows: a new release, another order or more rows must not move them."""
    path = write("a.jsonl", [*qa(20), {"question": "WHAT is 3 ?", "answer": "three"}])
    loaded = load(Data(path, heldout_fraction=0.3), CHAT)
    held = questions(loaded.heldout)
    assert held == [
        "What is 0?",
        "What is 3?",
        "What is 7?",
        "What is 8?",
        "What is 9?",
        "What is 18?",
        "What is 19?",
        "WHAT is 3 ?",
    ]
    assert questions(loaded.train) == [f"What is {i}?" for i in range(20) if f"What is {i}?" not in held]
    backwards = load(Data(write("b.jsonl", qa(25)[::-1]), heldout_fraction=0.3), CHAT)
    assert set(questions(backwards.train)).isdisjoint(held)
    assert vars(loaded.check) == vars(check(Data(path, heldout_fraction=0.3), CHAT))


def test_conversations_that_open_alike_are_on_one_side(write):
    u, a = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    rows = [{"messages": [u, a, {"role": "user", "content": f"And {i}?"}, a]} for i in range(50)] + qa_chats(50)
    loaded = load(Data(write("a.jsonl", rows), heldout_fraction=0.5), CHAT)
    sides = {side for side, rows in (("t", loaded.train), ("h", loaded.heldout)) for r in rows if r["messages"][0] == u}
    assert len(sides) == 1 and len(loaded.train) > 10 and len(loaded.heldout) > 10


def test_limit_takes_the_first_and_keeps_the_held_out_rows(write):
    path = write("a.jsonl", qa(100))
    whole, cut = (load(Data(path, limit=n), CHAT) for n in (None, 7))
    assert questions(cut.train) == questions(whole.train)[:7]
    assert questions(cut.heldout) == questions(whole.heldout) != []
    assert cut.check.unused == len(whole.train) - 7


def test_heldout_limit_takes_the_first_and_trains_on_none_of_the_others(write):
    path = write("a.jsonl", qa(100))
    whole, cut = (load(Data(path, heldout_limit=n, heldout_fraction=0.3), CHAT) for n in (None, 4))
    assert questions(cut.train) == questions(whole.train)
    assert questions(cut.heldout) == questions(whole.heldout)[:4]
    assert cut.check.unused == len(whole.heldout) - 4


def test_all_rows_held_out_is_for_evaluation(write):
    data = Data(write("a.jsonl", qa(3)), heldout_fraction=1)
    assert check(data, CHAT, training=False).heldout_rows == 3
    loaded = load(data, CHAT, training=False)
    assert (len(loaded.train), questions(loaded.heldout)) == (0, ["What is 0?", "What is 1?", "What is 2?"])
    with pytest.raises(ValueError, match="leaves no training rows"):
        load(data, CHAT)


def test_nothing_held_out(write):
    loaded = load(Data(write("a.jsonl", qa(3)), heldout_fraction=0), CHAT)
    assert (len(loaded.train), loaded.heldout, loaded.train.column_names) == (3, None, ["messages"])


def test_tools_reach_the_trainer_as_they_were(write):
    """Without the nulls that other rows' keys would add in Arrow structs: templates test `'tool_calls' in message`."""
    call = {"type": "function", "function": {"name": "look", "arguments": {"up": True, "n": [1, 2.5]}}}
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    using = [
        {"role": "user", "content": "Sky?"},
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "Look up."},
        {"role": "tool", "content": "grey"},
        {"role": "assistant", "content": "Grey."},
    ]
    rows = [{"messages": using, "tools": [tool]}, *qa_chats(1)]
    loaded = load(Data(write("a.jsonl", rows), heldout_fraction=0), CHAT)
    assert loaded.train[:]["messages"] == [using, qa_chats(1)[0]["messages"]]
    assert loaded.train[:]["tools"] == [[tool], None]
    assert (loaded.check.tool_rows, loaded.check.offers_tools) == (1, True)
    assert load(Data(write("b.jsonl", qa(30))), CHAT).train.column_names == ["messages"]


NUMBERS = "[2.5e-11, 6.62607015e-34, 0.30000000000000004, 0.123456789012345, 123456789.12345679, -0.0, 1e22, 1E5, 1.0, 90071992547409931234567]"


@pytest.mark.parametrize("kind", ["chat", "prompt", "preference", "labelled"])
def test_numbers_are_those_that_json_reads(tmp_path, kind):
    """In a tool's arguments and its description, from each kind of row; and again after they were split into one row per answer."""
    calls = f'[{{"type": "function", "function": {{"name": "f", "arguments": {{"n": {NUMBERS}}}}}}}]'
    tools = f'[{{"type": "function", "function": {{"name": "f", "parameters": {{"enum": {NUMBERS}}}}}}}]'
    asked = (
        f'{{"role": "user", "content": "q"}}, {{"role": "assistant", "content": "", "tool_calls": {calls}}}, '
        '{"role": "tool", "content": "ok"}'
    )
    answers = [f'[{{"role": "assistant", "content": "{word}", "tool_calls": {calls}}}]' for word in ("yes", "no")]
    columns = {
        "chat": f'"messages": [{asked}, {answers[0][1:]}',
        "prompt": f'"prompt": [{asked}]',
        "preference": f'"prompt": [{asked}], "chosen": {answers[0]}, "rejected": {answers[1]}',
        "labelled": f'"prompt": [{asked}], "completion": {answers[0]}, "label": true',
    }
    line = f'{{{columns[kind]}, "tools": {tools}}}'
    (tmp_path / "a.jsonl").write_text(line + "\n")
    train = load(Data(str(tmp_path / "a.jsonl"), heldout_fraction=0), (kind,)).train
    assert json.dumps(train[0]) == json.dumps({c: json.loads(line)[c] for c in train.column_names})
    if kind == "chat":
        (first, second), messages = per_answer(train), json.loads(line)["messages"]
        assert json.dumps(first["completion"] + second["completion"]) == json.dumps([messages[1], messages[3]])
        assert json.dumps([second["prompt"], second["tools"]]) == json.dumps([messages[:3], json.loads(tools)])


@pytest.mark.parametrize(
    ("want", "columns"),
    [
        (("preference",), {"prompt": "p0", "chosen": "c", "rejected": "r"}),
        (("labelled",), {"prompt": "p0", "completion": "c", "label": True}),
        (("prompt",), {"prompt": "p0"}),
        (("text",), {"text": "p0"}),
        (("pair",), {"sentence1": "p0", "sentence2": "c", "score": 2.5}),
    ],
)
def test_every_kind_loads(write, want, columns):
    row = load(Data(write("a.jsonl", [columns] * 2), heldout_fraction=0), want).train[1]
    u, a, r = ({"role": role, "content": c} for role, c in (("user", "p0"), ("assistant", "c"), ("assistant", "r")))
    assert (
        row
        == {
            "preference": {"prompt": [u], "chosen": [a], "rejected": [r]},
            "labelled": {"prompt": [u], "completion": [a], "label": True},
            "prompt": {"prompt": [u]},
            "text": {"text": "p0"},
            "pair": {"a": "p0", "b": "c", "score": 2.5},
        }[want[0]]
    )


def test_hash_is_of_the_content(write, tmp_path):
    first = check(Data(write("a.jsonl", qa(20))), CHAT)
    (tmp_path / "b.json").write_text(json.dumps(qa(20), indent=1))
    assert check(Data(str(tmp_path / "b.json")), CHAT).sha256 == first.sha256  # the same rows in another file
    assert (
        check(Data(write("c.jsonl", [*qa(19), {"question": "What is 19?", "answer": "20"}])), CHAT).sha256
        != first.sha256
    )


def test_cache_is_reused_until_something_changes(write, cache):
    data = Data(write("a.jsonl", qa(20)))
    load(data, CHAT)
    made = {p: p.stat().st_mtime_ns for p in cache.glob("*/train.arrow")}
    load(data, CHAT)
    assert {p: p.stat().st_mtime_ns for p in cache.glob("*/train.arrow")} == made and len(made) == 1
    load(Data(data.source, limit=3), CHAT)
    write("a.jsonl", qa(20, start=5))
    assert "What is 24?" in questions(load(data, CHAT).train)
    assert len(list(cache.glob("*/train.arrow"))) == 3


def test_a_failed_or_killed_build_leaves_nothing_behind(write, cache):
    path = write("a.jsonl", [*qa(20), {"question": "x"}])
    with pytest.raises(ValueError):
        load(Data(path), CHAT)
    assert list(cache.glob("*/*")) == []
    load(Data(path, bad_rows="skip"), CHAT)
    (built,) = (p for p in cache.iterdir() if p.is_dir())
    built.rename(built.with_name(built.name + ".building"))  # as after kill -9
    assert len(load(Data(path, bad_rows="skip"), CHAT).train) > 10
    assert [p for p in cache.iterdir() if p.is_dir()] == [built]


def test_workers_that_start_together_get_the_same_rows(write, cache):
    path = write("a.jsonl", qa(3000))
    code = (
        "import sys, datasets; datasets.config.HF_DATASETS_CACHE = sys.argv[2]\n"
        "from lib.config.job import Data; from lib.data import load\n"
        "l = load(Data(sys.argv[1]), ('chat',))\n"
        "print(len(l.train), len(l.heldout), l.check.sha256, l.train._fingerprint, l.train[5], l.heldout[5])"
    )
    command = [sys.executable, "-c", code, path, str(cache.parent)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {w.communicate(timeout=PATIENCE)[0] for w in workers}
    assert len(said) == 1 and said.pop().split()[0].isdigit()
    assert len(list(cache.glob("*/train.arrow"))) == 1
