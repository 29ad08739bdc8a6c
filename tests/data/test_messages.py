"""Turns in every format → messages, and the reasons that make a conversation unusable."""

import json
from datetime import date

import pytest

from lib.data.messages import is_transcript, read_tools, read_transcript, read_turns
from lib.data.rows import BadRow, check_order, check_row

U = {"role": "user", "content": "Sky?"}
A = {"role": "assistant", "content": "Grey."}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"up": True}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOOL = {"role": "tool", "content": "grey"}
NAN = float("nan")


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([{"role": "developer", "content": "Short."}, U], [{"role": "system", "content": "Short."}, U]),
        ([{"role": "system", "content": " "}, U], [U]),
        ([{"from": "HUMAN", "value": "Sky?"}, {"from": "bot", "value": "Grey."}], [U, A]),
        # OpenAI: arguments as JSON text, null content, and an id that the tool's answer repeats.
        (
            [
                U,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"up": true}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "name": "look", "content": "grey"},
            ],
            [
                U,
                {"role": "assistant", "content": "", "tool_calls": [{"id": "c1"} | CALL]},
                {"role": "tool", "content": "grey", "name": "look", "tool_call_id": "c1"},
            ],
        ),
        (
            [U, {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": '{"up": true}'}}],
            [U, CALLING],
        ),
        (
            [U, {"role": "assistant", "content": "", "tool_calls": [{"name": "look", "arguments": {"up": True}}]}],
            [U, CALLING],
        ),
        # Two calls in one function_call turn, after a text of the same speaker.
        (
            [
                U,
                {"from": "gpt", "value": "Looking."},
                {"from": "function_call", "value": '[{"name": "look", "arguments": {"up": true}}, {"name": "listen"}]'},
            ],
            [
                U,
                {
                    "role": "assistant",
                    "content": "Looking.",
                    "tool_calls": [CALL, {"type": "function", "function": {"name": "listen", "arguments": {}}}],
                },
            ],
        ),
        # Typed parts, with "text" (OpenAI) and with "value" (LLaMA-Factory).
        (
            [{"role": "user", "content": [{"type": "text", "text": "Sky"}, {"type": "text", "value": "now?"}]}],
            [{"role": "user", "content": "Sky\nnow?"}],
        ),
        (
            [
                U,
                {
                    "role": "assistant",
                    "content": [
                        {"type": "reasoning", "value": "They ask about the sky."},
                        {"type": "tool_call", "value": '{"name": "look", "arguments": {"up": true}}'},
                    ],
                },
                {"role": "tool", "content": [{"type": "text", "value": "grey"}]},
            ],
            [U, CALLING | {"reasoning_content": "They ask about the sky."}, TOOL],
        ),
        (
            [U, {"role": "assistant", "content": "Grey.", "reasoning": "Clouds."}],
            [U, A | {"reasoning_content": "Clouds."}],
        ),
        ([U, {"role": "ipython", "content": {"sky": "grün"}}], [U, {"role": "tool", "content": '{"sky": "grün"}'}]),
        # Arrow's nulls for keys that other rows have.
        ([{"role": "user", "content": "Sky?", "tool_calls": None, "name": None}], [U]),
        # pandas' NaN for the same.
        ([U, A | dict.fromkeys(("reasoning", "thinking", "tool_calls", "function_call", "weight"), NAN)], [U, A]),
        # Calls as JSON text; their keys stay in order, since templates render them.
        (
            [
                U,
                {
                    "role": "assistant",
                    "tool_calls": '[{"type": "function", "function": {"arguments": {}, "name": "n"}}]',
                },
            ],
            [
                U,
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"type": "function", "function": {"arguments": {}, "name": "n"}}],
                },
            ],
        ),
    ],
)
def test_read_turns(turns, expected):
    found = read_turns(turns, "messages")
    assert found == expected
    assert json.dumps([m.get("tool_calls") for m in found]) == json.dumps([m.get("tool_calls") for m in expected])


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ("Sky?", "messages is text, not a list"),
        ([3], r"messages\[1\] is a number, not a message"),
        ([U, {"content": "Grey."}], r"messages\[2\] has role None"),
        ([{"role": "asistant", "content": "x"}], r"messages\[1\] has role 'asistant' \(nearest: assistant\)"),
        ([{"role": "user", "content": None}], r"messages\[1\] \(user\) has null for content"),
        ([{"role": "user", "content": 4}], r"\(user\) has a number for content"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "a part of type 'image_url'",
        ),
        ([U | {"tool_calls": [CALL]}], r"\(user\) calls a tool"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}], "the tool call has no name"),
        ([{"from": "function_call", "value": "look(up)"}], "the tool call is not JSON"),
        (
            [{"from": "function_call", "value": '{"name": "look", "arguments": "[1]"}'}],
            "arguments are a list, not an object",
        ),
        (
            [{"from": "function_call", "value": '{"name": "n", "arguments": {"id": [1, NaN]}}'}],
            r"the tool call has nan, which JSON can't hold \(write it as text or null\)",
        ),
        (
            [{"role": "tool", "content": {"mean": float("inf")}}],
            r"messages\[1\] \(tool\) has inf, which JSON can't hold",
        ),
        (
            [
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"name": "n", "arguments": {"on": date(2026, 1, 2)}}],
                }
            ],
            "the tool call has a date, which JSON can't hold",
        ),
        ([{"role": "assistant", "content": "x", "reasoning": 7}], "has a number for reasoning"),
        ([{"role": "assistant", "content": float("nan")}], r"messages\[1\] \(assistant\) has null for content"),
    ],
)
def test_read_turns_refuses(turns, why):
    with pytest.raises(BadRow, match=why):
        read_turns(turns, "messages")


def test_tools():
    bare = {"name": "look", "parameters": {}}
    wrapped = {"type": "function", "function": bare}
    assert read_tools('[{"name": "look", "parameters": {}}]') == {"tools": [wrapped]}
    assert read_tools([wrapped]) == {"tools": [wrapped]}
    assert read_tools(None) == read_tools("") == read_tools("[]") == {}


def test_transcript():
    text = "\n\nHuman: Sky?\n\nIt matters.\n\nAssistant: Grey.\n\n\n\nHuman: And\nnow?\n\nAssistant:"
    assert is_transcript(text)
    assert read_transcript(text, "chosen") == [
        {"role": "user", "content": "Sky?\n\nIt matters."},
        A,
        {"role": "user", "content": "And\nnow?"},
        {"role": "assistant", "content": ""},
    ]
    assert read_transcript("Human: Sky?\n\nAssistant: Grey.", "chosen") == [U, A]


def test_not_transcripts():
    assert not is_transcript("The Human: a history")
    assert not is_transcript("Human: only a question")
    with pytest.raises(BadRow, match="prompt doesn't start with 'Human:'"):
        read_transcript("Well.\n\nHuman: Sky?", "prompt")


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "has no messages"),
        ([A], "message 1 is by assistant, but system or user comes first"),
        ([U, U, A], "message 2 is by user, but assistant comes after user"),
        ([U, A, A], "message 3 is by assistant, but user or tool comes after assistant"),
        ([U, {"role": "system", "content": "x"}], "message 2 is by system"),
        ([U, A, TOOL, A], "message 3 is a tool's answer, but the assistant called no tool"),
        ([U | {"content": " "}, A], r"message 1 \(user\) is empty"),
        ([U, A | {"content": ""}], r"message 2 \(assistant\) is empty"),
        ([U, A, U], "ends with user, not assistant"),
    ],
)
def test_order(messages, why):
    with pytest.raises(BadRow, match=why):
        check_order(messages, last=("assistant",))


def test_good_orders():
    check_order([U, A], ("assistant",))
    check_order([{"role": "system", "content": "x"}, U, CALLING, TOOL, TOOL, CALLING, TOOL, A, U, A], ("assistant",))
    check_order([U, CALLING, TOOL | {"content": ""}, A], ("assistant",))  # a tool may return nothing


@pytest.mark.parametrize(
    ("kind", "row", "why"),
    [
        ("text", {"text": " "}, "text is empty"),
        ("prompt", {"prompt": [U, A]}, "ends with assistant, not user or tool"),
        ("preference", {"prompt": [U], "chosen": [A], "rejected": [A]}, "chosen and rejected are the same"),
        (
            "preference",
            {"prompt": [U], "chosen": [A | {"content": ""}], "rejected": [A]},
            "chosen: the answer is empty",
        ),
        ("preference", {"prompt": [U], "chosen": [A], "rejected": [U]}, "rejected: message 2 is by user"),
        ("preference", {"prompt": [U, A], "chosen": [A], "rejected": [A]}, "ends with assistant"),
        (
            "preference",
            {"prompt": [U], "chosen": [A, U, A], "rejected": [A | {"content": "No."}, U, A]},
            r"chosen has a user message after its first answer \(it would be learnt like",
        ),
        ("preference", {"prompt": [U], "chosen": [A], "rejected": [CALLING, TOOL, A]}, "rejected has a tool message"),
        ("labelled", {"prompt": [U], "completion": [A, U, A], "label": True}, "completion has a user message"),
        ("labelled", {"prompt": [U], "completion": [], "label": True}, "ends with user, not assistant"),
        ("pair", {"a": "x", "b": " ", "score": 1.0}, "one of the two texts is empty"),
        ("pair", {"a": "x", "b": "y", "score": float("nan")}, "score is nan"),
    ],
)
def test_check_row(kind, row, why):
    with pytest.raises(BadRow, match=why):
        check_row(kind, row)
