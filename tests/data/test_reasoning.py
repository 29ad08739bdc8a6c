"""Reasoning in answers: found in every place where data sets keep it, written into answers, left out, and read back."""

import pytest

from lib.config.job import Data
from lib.data import check, load, per_answer
from lib.data.reasoning import NONE, answer, settle, written
from lib.data.rows import BadRow

pytestmark = pytest.mark.usefixtures("cache")
WRITTEN = "<think>\n2 + 2 = 4\n</think>\n\n#### 4"


def user(text):
    return {"role": "user", "content": text}


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("2 + 2?"), said("#### 4", reasoning_content="2 + 2 = 4")]},
        {"messages": [user("2 + 2?"), said("<think>2 + 2 = 4</think>\n\n#### 4")]},
        {"messages": [user("2 + 2?"), said("2 + 2 = 4\n</think>\n\n#### 4")]},  # R1's prompt opens <think>
        {"messages": [user("2 + 2?"), said("<think>2 + 2 = 4</think>#### 4", thinking="2 + 2 = 4")]},
        {"question": "2 + 2?", "answer": "2 + 2 = 4\n#### 4"},  # GSM8K
        {"question": "2 + 2?", "answer": "#### 4", "rationale": "2 + 2 = 4"},
        {"instruction": "2 + 2?", "output": "#### 4", "reasoning": " 2 + 2 = 4 "},
        {"prompt": "2 + 2?", "completion": "#### 4", "thought": "2 + 2 = 4"},
    ],
)
def test_reasoning_is_found_counted_and_written_or_removed(write, row):
    path = write("a.jsonl", [row])
    for how, content in (("learn", WRITTEN), ("mask", WRITTEN), ("remove", "#### 4")):
        loaded = load(Data(path, heldout_fraction=0, reasoning=how), ("chat",))
        assert loaded.train[0]["messages"] == [user("2 + 2?"), said(content)]
        assert loaded.check.summary()["reasoning"] == 1 and f"data.reasoning: {how}" in loaded.check.lines()[-1]
        assert answer(content) == "#### 4"


def test_without_the_key_rows_are_left_as_they_are(write):
    rows = [
        {"messages": [user("1?"), said("1", reasoning_content="one")]},
        {"messages": [user("2?"), said("<think>two</think>2")]},
        {"messages": [user("3?"), said("three\n#### 3")]},
    ]
    loaded = load(Data(write("a.jsonl", rows), heldout_fraction=0), ("chat",))
    assert loaded.train["messages"] == [row["messages"] for row in rows]
    assert loaded.check.reasoning == 2 and "the chat template writes or drops" in loaded.check.lines()[-1]


def test_earlier_reasoning_is_in_no_later_context_except_since_the_last_question(write):
    call = [{"type": "function", "function": {"name": "add", "arguments": {}}}]
    tool = {"role": "tool", "content": "5"}
    talk = [
        user("a?"), said("A", reasoning_content="r1"),
        user("b?"), said("", reasoning_content="r2", tool_calls=call), tool, said("B", reasoning_content="r3"),
    ]  # fmt: skip
    wrote = said(written("r2", ""), tool_calls=call)
    loaded = load(
        Data(write("a.jsonl", [{"messages": talk}]), heldout_fraction=0, reasoning="learn", limit=9), ("chat",)
    )
    assert [(r["prompt"], r["completion"]) for r in per_answer(loaded.train)] == [
        ([user("a?")], [said(written("r1", "A"))]),
        ([user("a?"), said("A"), user("b?")], [wrote]),
        ([user("a?"), said("A"), user("b?"), wrote, tool], [said(written("r3", "B"))]),
    ]
    marked = [talk[0], talk[1] | {"weight": 0}, *talk[2:]]
    loaded = load(Data(write("b.jsonl", [{"messages": marked}]), heldout_fraction=0, reasoning="learn"), ("chat",))
    assert [r["completion"] for r in per_answer(loaded.train)] == [[wrote], [said(written("r3", "B"))]]


def test_both_answers_of_a_pair_keep_their_reasoning_and_the_prompt_none():
    row = {
        "prompt": [user("a?"), said("A", reasoning_content="r0"), user("b?")],
        "chosen": [said("<think>r1</think>B")],
    }
    ((learnt,), number), ((removed,), _) = (settle("preference", row, how) for how in ("learn", "remove"))
    assert number == 2 and learnt["chosen"] == [said(written("r1", "B"))] and removed["chosen"] == [said("B")]
    assert learnt["prompt"] == removed["prompt"] == [user("a?"), said("A"), user("b?")]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<think>and then", "opens <think> and doesn't close it"),
        ("<think>all of it</think>\n", "has reasoning and nothing after it"),
        ("<think>a</think>b</think>c", "has more than one <think>"),
        ("So: <think>a</think>b", "text before <think>"),
    ],
)
def test_answers_that_cannot_be_read_back_are_bad_rows(text, why):
    with pytest.raises(BadRow, match=why):
        settle("chat", {"messages": [user("q"), said(text)]}, "learn")


def test_learning_reasoning_that_is_not_there_is_refused(write):
    path = write("a.jsonl", [{"question": "1?", "answer": "one"}])
    with pytest.raises(ValueError, match=r"data.reasoning: learn, and no answer .*rationale.*data.columns"):
        check(Data(path, heldout_fraction=0, reasoning="learn"), ("chat",))
    assert check(Data(path, heldout_fraction=0, reasoning="remove"), ("chat",)).rows == 1


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("4", "4"),
        (NONE + "4", "4"),
        (WRITTEN, "#### 4"),
        ("so\n</think>\n\n4", "4"),
        ("a</think>b</think>4", "4"),
        ("\n<think>\n2 + 2", ""),
        ("", ""),
    ],
)
def test_the_answer_after_the_reasoning(text, final):
    assert answer(text) == final
