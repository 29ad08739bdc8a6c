"""Messages marked as not to be learnt are context in every stage, and are counted."""

import pytest

from lib.config.job import Data
from lib.data import check, load, per_answer
from lib.data.formats import FORMATS
from lib.data.marks import mark
from lib.data.rows import BadRow
from lib.evals.measures.language_modelling import _pieces
from tests.data.conftest import CHAT, qa_chats

pytestmark = pytest.mark.usefixtures("cache")
NAN = float("nan")


def user(text):
    return {"role": "user", "content": text}


def answer(text, **marked):
    return {"role": "assistant", "content": text, **marked}


def learnt(rows):
    return [row["completion"][0]["content"] for row in rows]


@pytest.mark.parametrize(
    "marked",
    [
        {"weight": 0}, {"weight": 0.0}, {"weight": "0"}, {"train": False}, {"training": False}, {"trainable": False},
        {"loss": False}, {"loss": "False"}, {"loss_weight": 0}, {"weight": 0, "train": False},
    ],
)  # fmt: skip
def test_spellings(marked):
    assert mark(marked, "messages[2]") == {"weight": 0}


@pytest.mark.parametrize(
    "unmarked", [{}, {"weight": 1}, {"weight": 1.0}, {"train": True, "loss": None}, {"loss": "true"}]
)
def test_unmarked(unmarked):
    assert mark(unmarked, "messages[2]") == {}


@pytest.mark.parametrize(
    ("marked", "why"),
    [
        (
            {"weight": 0.5},
            r"messages\[2\] has weight 0.5 \(0 or false: not learnt; 1 or true: learnt; nothing between\)",
        ),
        ({"loss_weight": 2}, "has loss_weight 2"),
        ({"weight": -1}, "has weight -1"),
        ({"train": "maybe"}, "has train 'maybe'"),
        ({"weight": 1, "train": False}, r"is marked both ways \(weight: 1, train: False\)"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 3, "train": False}]}, "has train_detail"),
    ],
)
def test_marks_that_cannot_be_kept(marked, why):
    with pytest.raises(BadRow, match=why):
        mark(marked, "messages[2]")


def test_marked_answers_are_context(write):
    """In both formats, on both sides of the split; no template receives the mark."""
    talk = [user("One?"), answer("WRONG", weight=0), user("Two?"), answer("2", weight=1), user("Three?"), answer("3")]
    share = [
        {"from": "human", "value": "Four?"},
        {"from": "gpt", "value": "BAD", "train": False},
        {"from": "human", "value": "Again?", "train": False},
        {"from": "gpt", "value": "4", "train": True},
    ]
    path = write("a.jsonl", [{"messages": talk}, {"messages": share}, *qa_chats(1)])
    loaded = load(Data(path, heldout_fraction=0), CHAT)
    assert loaded.train[0]["messages"] == [{k: m[k] for k in ("role", "content")} for m in talk]
    rows = per_answer(loaded.train)
    assert (learnt(rows), rows.column_names) == (["2", "3", "4", "A"], ["prompt", "completion"])
    assert rows[0]["prompt"] == [user("One?"), answer("WRONG"), user("Two?")]
    assert loaded.check.unlearnt == loaded.check.summary()["unlearnt"] == 2
    assert "data: 2 answers are marked as not to be learnt (weight 0): context only" in loaded.check.lines()
    held = load(Data(path, heldout_fraction=1), CHAT, training=False).heldout
    assert learnt(per_answer(held)) == ["2", "3", "4", "A"]
    assert [piece[1][0]["content"] for piece in _pieces(held[0])] == ["2", "3"]  # perplexity


def test_unmarked_rows_have_no_column_for_marks(write):
    found = load(Data(write("a.jsonl", qa_chats(3)), heldout_fraction=0), CHAT)
    assert found.train.column_names == ["messages"] and not any(
        "not to be learnt" in line for line in found.check.lines()
    )


@pytest.mark.parametrize(
    ("want", "row", "why"),
    [
        ("chat", {"messages": [user("x"), answer("y", weight=0)]}, "every answer is marked as not to be learnt"),
        ("chat", {"messages": [user("x"), answer("y", weight=0.3)]}, r"messages\[2\] has weight 0.3"),
        (
            "preference",
            {"prompt": "x", "chosen": [answer("y", loss=False)], "rejected": [answer("z")]},
            "chosen is marked",
        ),
        (
            "preference",
            {"prompt": "x", "chosen": [answer("y")], "rejected": [answer("z", train=0)]},
            "rejected is marked",
        ),
        ("labelled", {"messages": [user("x"), answer("y", trainable=False)], "label": True}, "completion is marked"),
    ],
)
def test_rows_whose_answer_is_marked_are_refused(write, want, row, why):
    with pytest.raises(ValueError, match=f"a.jsonl:1: {why}"):
        check(Data(write("a.jsonl", [row]), heldout_fraction=0), (want,))


def test_marks_in_a_prompt_change_nothing_but_what_sft_learns(write):
    prompt = [user("One?"), answer("WRONG", weight=0), user("Two?")]
    path = write("a.jsonl", [{"prompt": prompt, "chosen": [answer("2")], "rejected": [answer("3")]}])
    pairs = load(Data(path, heldout_fraction=0), ("preference",))
    assert pairs.train[0]["prompt"] == [user("One?"), answer("WRONG"), user("Two?")]
    chats = load(Data(path, heldout_fraction=0), CHAT)
    assert (learnt(per_answer(chats.train)), chats.check.unlearnt) == (["2"], 1)


def test_a_call_and_the_words_before_it_are_one_message():
    turns = [
        {"from": "human", "value": "Sky?"},
        {"from": "gpt", "value": "Looking."},
        {"from": "function_call", "value": '{"name": "look"}', "weight": 0},
    ]
    with pytest.raises(BadRow, match=r"conversations\[3\] has another weight mark than the text before it"):
        FORMATS["sharegpt"].read({"conversations": turns})
    turns[1]["weight"] = 0
    assert FORMATS["sharegpt"].read({"conversations": turns})[0]["messages"][1]["weight"] == 0
