"""Every format: one row as people write it, its literal canonical row, and the errors for bad rows."""

import json

import pytest

from lib.data.formats import CONTRASTIVE, FORMATS
from lib.data.recognise import recognise
from lib.data.rows import CONVERSIONS, KINDS, BadRow, check_row

U = {"role": "user", "content": "Name a fruit."}
A = {"role": "assistant", "content": "Fig."}
B = {"role": "assistant", "content": "Brick."}
S = {"role": "system", "content": "Be brief."}
WEATHER = {"name": "weather", "description": "tells it", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": WEATHER}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm"}}}
HUMAN = {"from": "human", "value": "Name a fruit."}
GPT = {"from": "gpt", "value": "Fig."}

CASES = [
    ("text", {"text": "Once there was a fig tree."}, [{"text": "Once there was a fig tree."}]),
    ("messages", {"messages": [S, U, A]}, [{"messages": [S, U, A]}]),
    ("messages", {"messages": [U, A], "tools": json.dumps([WEATHER])}, [{"messages": [U, A], "tools": TOOLS}]),
    ("messages", {"messages": [U, A], "tools": "[]", "system": "Be brief."}, [{"messages": [S, U, A]}]),
    ("sharegpt", {"conversations": [HUMAN, GPT]}, [{"messages": [U, A]}]),
    (
        "sharegpt",
        {
            "conversations": [
                HUMAN,
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"town": "Ulm"}}'},
                {"from": "observation", "value": '{"sky": "grey"}'},
                GPT,
            ],
            "system": "Be brief.",
            "tools": json.dumps([WEATHER]),
        },
        [
            {
                "messages": [
                    S,
                    U,
                    {"role": "assistant", "content": "", "tool_calls": [CALL]},
                    {"role": "tool", "content": '{"sky": "grey"}'},
                    A,
                ],
                "tools": TOOLS,
            }
        ],
    ),
    ("alpaca", {"instruction": "Name a fruit.", "input": "", "output": "Fig."}, [{"messages": [U, A]}]),
    (
        "alpaca",
        {
            "instruction": "Name a fruit.",
            "input": "Not an apple.",
            "output": "Fig.",
            "system": "Be brief.",
            "history": [["Hello?", "Hello!"]],
        },
        [
            {
                "messages": [
                    S,
                    {"role": "user", "content": "Hello?"},
                    {"role": "assistant", "content": "Hello!"},
                    {"role": "user", "content": "Name a fruit.\nNot an apple."},
                    A,
                ]
            }
        ],
    ),
    (
        "self-instruct",
        {
            "instruction": "Name a fruit.",
            "instances": [{"input": "", "output": "Fig."}, {"input": "Green.", "output": "Lime."}],
        },
        [
            {"messages": [U, A]},
            {
                "messages": [
                    {"role": "user", "content": "Name a fruit.\nGreen."},
                    {"role": "assistant", "content": "Lime."},
                ]
            },
        ],
    ),
    ("prompt-completion", {"prompt": "Name a fruit.", "completion": "Fig."}, [{"messages": [U, A]}]),
    ("prompt-completion", {"prompt": [S, U], "completion": [A]}, [{"messages": [S, U, A]}]),
    ("question-answer", {"question": "Name a fruit.", "answer": "Fig."}, [{"messages": [U, A]}]),
    (
        "question-answer",
        {"question": "Name a fruit.", "answer": 7},
        [{"messages": [U, {"role": "assistant", "content": "7"}]}],
    ),
    (
        "preference",
        {"prompt": "Name a fruit.", "chosen": "Fig.", "rejected": "Brick."},
        [{"prompt": [U], "chosen": [A], "rejected": [B]}],
    ),
    (
        "preference",
        {"prompt": [S, U], "chosen": [A], "rejected": [B]},
        [{"prompt": [S, U], "chosen": [A], "rejected": [B]}],
    ),
    # UltraFeedback: the prompt as text, and repeated at the start of both conversations.
    (
        "preference",
        {"prompt": "Name a fruit.", "chosen": [U, A], "rejected": [U, B]},
        [{"prompt": [U], "chosen": [A], "rejected": [B]}],
    ),
    (
        "preference",
        {"prompt": "\n\nHuman: Name a fruit.\n\nAssistant:", "chosen": " Fig.", "rejected": "Brick."},
        [{"prompt": [U], "chosen": [{"role": "assistant", "content": " Fig."}], "rejected": [B]}],
    ),
    (
        "preference-implicit",
        {"chosen": [S, U, A], "rejected": [S, U, B]},
        [{"prompt": [S, U], "chosen": [A], "rejected": [B]}],
    ),
    (
        "sharegpt-preference",
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "Brick."}},
        [{"prompt": [U], "chosen": [A], "rejected": [B]}],
    ),
    (
        "alpaca-preference",
        {"instruction": "Name a fruit.", "input": None, "chosen": "Fig.", "rejected": "Brick."},
        [{"prompt": [U], "chosen": [A], "rejected": [B]}],
    ),
    (
        "hh-rlhf",
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Name a fruit.\n\nAssistant: Fig.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Name a fruit.\n\nAssistant: Brick.",
        },
        [
            {
                "prompt": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, U],
                "chosen": [A],
                "rejected": [B],
            }
        ],
    ),
    (
        "labelled",
        {"prompt": "Name a fruit.", "completion": "Fig.", "label": True},
        [{"prompt": [U], "completion": [A], "label": True}],
    ),
    (
        "labelled",
        {"prompt": [U], "completion": [B], "label": "False"},
        [{"prompt": [U], "completion": [B], "label": False}],
    ),
    ("messages-labelled", {"messages": [S, U, B], "label": 0}, [{"prompt": [S, U], "completion": [B], "label": False}]),
    (
        "sharegpt-labelled",
        {"conversations": [HUMAN, GPT], "label": True},
        [{"prompt": [U], "completion": [A], "label": True}],
    ),
    (
        "alpaca-labelled",
        {"instruction": "Name a fruit.", "output": "Fig.", "label": True},
        [{"prompt": [U], "completion": [A], "label": True}],
    ),
    (
        "pair",
        {"sentence1": "A fig.", "sentence2": "One fig.", "score": "4.5"},
        [{"a": "A fig.", "b": "One fig.", "score": 4.5}],
    ),
    (
        "anchor-positive",
        {"anchor": "A fruit?", "positive": "Fig.", "negative": "Brick.", "negatives": ["Oak."], "negative_2": None},
        [{"anchor": "A fruit?", "positive": "Fig.", "negatives": ["Brick.", "Oak."]}],
    ),
    (
        "query-pos",
        {"query": "A fruit?", "pos": ["Fig.", "Plum."], "neg": ["Brick."]},
        [{"anchor": "A fruit?", "positive": text, "negatives": ["Brick."]} for text in ("Fig.", "Plum.")],
    ),
    *[
        (f"{one}-{two}", {one: "A fruit?", two: "Fig."}, [{"anchor": "A fruit?", "positive": "Fig.", "negatives": []}])
        for one, two, _ in CONTRASTIVE
        if two != "pos" and one != "anchor"
    ],
    *[
        (f"{name}-label", row | {"label": label}, [{"text": "Fig.", "second": second, "label": wanted}])
        for name, row, second, label, wanted in (
            ("text", {"text": "Fig."}, None, " ripe ", "ripe"),
            ("sentence", {"sentence": "Fig."}, None, 1, "1"),
            ("sentence1-sentence2", {"sentence1": "Fig.", "sentence2": "Plum."}, "Plum.", True, "true"),
            ("premise-hypothesis", {"premise": "Fig.", "hypothesis": "Plum."}, "Plum.", 2.0, "2"),
            (
                "question-sentence",
                {"question": "Fig.", "sentence": "Plum."},
                "Plum.",
                "not_entailment",
                "not_entailment",
            ),
            ("question1-question2", {"question1": "Fig.", "question2": "Plum."}, "Plum.", "0", "0"),
        )
    ],
    ("prompt", {"prompt": "Name a fruit."}, [{"prompt": [U]}]),
    ("prompt", {"prompt": [S, U]}, [{"prompt": [S, U]}]),
]


@pytest.mark.parametrize(("name", "row", "expected"), CASES, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(CASES)])
def test_format(name, row, expected):
    kind = FORMATS[name].kind
    assert recognise([row], (kind,), "auto", "data.source") == (name, [])
    assert FORMATS[name].read(row) == expected
    for canonical in expected:
        check_row(kind, canonical)
        assert set(canonical) <= set(KINDS[kind].__annotations__)


def test_every_format_has_a_case():
    assert {name for name, _, _ in CASES} == set(FORMATS)


@pytest.mark.parametrize(
    ("name", "row", "why"),
    [
        ("text", {"text": None}, "text is null, not text"),
        ("text", {"text": "  \n"}, "text is empty"),
        ("text", {"body": "x"}, "no text"),
        ("alpaca", {"instruction": "Hi", "output": ""}, "output is empty"),
        ("alpaca", {"instruction": "Hi", "output": "x", "input": ["y"]}, "input is a list, not text"),
        ("alpaca", {"instruction": "Hi", "output": "x", "history": [["only one"]]}, "history isn't a list of"),
        ("self-instruct", {"instruction": "Hi", "instances": []}, "instances is an empty list"),
        ("self-instruct", {"instruction": "Hi", "instances": ["x"]}, "an instance isn't an object"),
        ("question-answer", {"question": "Hi", "answer": {"a": 1}}, "answer is an object, not text"),
        ("messages", {"messages": []}, "messages is an empty list, not a list of messages"),
        ("messages", {"messages": None}, "messages is null"),
        ("messages", {"messages": [U, A], "tools": "{not json"}, "tools is not JSON"),
        ("messages", {"messages": [U, A], "tools": "7"}, "tools is not a list of objects"),
        ("preference-implicit", {"chosen": [U, A], "rejected": [S, U, B]}, "share no prompt"),
        ("preference", {"prompt": "Hi", "chosen": [U, A], "rejected": [U, B]}, "doesn't start with the prompt"),
        ("preference", {"prompt": "Hi", "chosen": "x", "rejected": None}, "rejected is null, not text"),
        ("hh-rlhf", {"chosen": "Fig.", "rejected": "Brick."}, "chosen doesn't start with 'Human:'"),
        ("hh-rlhf", {"chosen": 3, "rejected": "Brick."}, "chosen is a number, not a transcript"),
        ("labelled", {"prompt": "Hi", "completion": "x", "label": "maybe"}, "label is 'maybe', not true or false"),
        ("pair", {"sentence1": "a", "sentence2": "b", "score": "high"}, "score is 'high', not a number"),
        ("query-pos", {"query": "q", "pos": []}, "pos is an empty list"),
        ("query-pos", {"query": "q", "pos": ["a", 3.5, None]}, "pos is null, not text"),
    ],
)
def test_bad_rows_say_why(name, row, why):
    with pytest.raises(BadRow, match="^.*" + why.replace("(", r"\(")):
        FORMATS[name].read(row)


def test_hh_rows_that_differ_earlier_or_repeat_a_speaker():
    """Like rows 1255, 1689 and 2037 of hh-rlhf's harmless test set: the answers differ before the last turn."""
    row = {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Fruit?\n\nAssistant: Fig.\n\nAssistant: Or lime.",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Go away",
    }
    hi, hello = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    assert FORMATS["hh-rlhf"].read(row) == [
        {
            "prompt": [hi],
            "chosen": [
                hello,
                {"role": "user", "content": "Fruit?"},
                {"role": "assistant", "content": "Fig.\n\nOr lime."},
            ],
            "rejected": [{"role": "assistant", "content": "Go away"}],
        }
    ]


def test_one_conversation_is_the_start_of_the_other():
    row = {"chosen": [U, A, S | {"role": "user"}, B], "rejected": [U, A]}
    assert FORMATS["preference-implicit"].read(row) == [
        {"prompt": [U], "chosen": [A, S | {"role": "user"}, B], "rejected": [A]}
    ]


def test_tool_calls_before_the_judged_answer_belong_to_it():
    call, result = {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "grey"}
    assert FORMATS["messages-labelled"].read({"messages": [U, call, result, A], "label": True}) == [
        {"prompt": [U], "completion": [call, result, A], "label": True}
    ]


@pytest.mark.parametrize(
    ("have", "want", "row", "expected"),
    [
        (
            "preference",
            "chat",
            {"prompt": [U], "chosen": [A], "rejected": [B], "tools": TOOLS},
            [{"messages": [U, A], "tools": TOOLS}],
        ),
        ("labelled", "chat", {"prompt": [U], "completion": [A], "label": True}, [{"messages": [U, A]}]),
        ("labelled", "chat", {"prompt": [U], "completion": [B], "label": False}, []),
        (
            "preference",
            "labelled",
            {"prompt": [U], "chosen": [A], "rejected": [B]},
            [{"prompt": [U], "completion": [A], "label": True}, {"prompt": [U], "completion": [B], "label": False}],
        ),
        ("chat", "prompt", {"messages": [S, U, A, U, B]}, [{"prompt": [S, U, A, U]}]),
        ("preference", "prompt", {"prompt": [U], "chosen": [A], "rejected": [B]}, [{"prompt": [U]}]),
        ("labelled", "prompt", {"prompt": [U], "completion": [B], "label": False}, [{"prompt": [U]}]),
    ],
)
def test_conversions(have, want, row, expected):
    assert CONVERSIONS[have, want][0](row) == expected


def test_chat_without_an_answer_has_no_prompt():
    with pytest.raises(BadRow, match="no assistant"):
        CONVERSIONS["chat", "prompt"][0]({"messages": [U]})
