"""Converts common data formats to canonical rows. One function per format, all listed in FORMATS, most specific first.

To add a format, write its function and one line in FORMATS. A function receives one row, with columns already renamed
by data.columns, and returns the canonical rows in it. It raises BadRow with the reason if the row can't be used.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from lib.data import columns
from lib.data.messages import (
    assistant,
    kind_of,
    read_transcript,
    read_turns,
    split_common,
    user,
    with_system,
)
from lib.data.rows import BadRow, Kind, Message, missing_as_null


def plain_text(row: dict) -> list[dict]:
    """{"text": "Once upon a time …"}"""
    return [{"text": columns.text(row, "text")}]


def messages(row: dict) -> list[dict]:
    """{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "tools"?: […]}"""
    return [
        {"messages": with_system(row.get("system"), read_turns(row.get("messages"), "messages")), **columns.tools(row)}
    ]


def sharegpt(row: dict) -> list[dict]:
    """{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "system"?, "tools"?}"""
    turns = read_turns(row.get("conversations"), "conversations")
    return [{"messages": with_system(row.get("system"), turns), **columns.tools(row)}]


def alpaca(row: dict) -> list[dict]:
    """{"instruction": "Add.", "input": "1 2", "output": "3", "system"?: "…", "history"?: [["question", "answer"], …]}

    input follows instruction on a new line, as in LLaMA-Factory.
    """
    return [{"messages": [*_alpaca_prompt(row), columns.reasoned(assistant(columns.text(row, "output")), row)]}]


def alpaca_preference(row: dict) -> list[dict]:
    """{"instruction": "Add.", "input": "1 2", "chosen": "3", "rejected": "4"}"""
    return [_preference(_alpaca_prompt(row), row)]


def alpaca_labelled(row: dict) -> list[dict]:
    """{"instruction": "Add.", "input": "1 2", "output": "3", "label": true}"""
    return [
        {
            "prompt": _alpaca_prompt(row),
            "completion": [assistant(columns.text(row, "output"))],
            "label": columns.label(row),
        }
    ]


def self_instruct(row: dict) -> list[dict]:
    """{"instruction": "Add.", "instances": [{"input": "1 2", "output": "3"}, …]}: one conversation per instance"""
    instances = row.get("instances")
    if not isinstance(instances, list) or not instances:
        raise BadRow(f"instances is {kind_of(instances)}, not a list of {{input, output}}")
    if not all(isinstance(instance, dict) for instance in instances):
        raise BadRow("an instance isn't an object with input and output")
    instances = [missing_as_null(instance) for instance in instances]
    return [one for instance in instances for one in alpaca({**instance, "instruction": row.get("instruction")})]


def prompt_completion(row: dict) -> list[dict]:
    """{"prompt": "Why?", "completion": "Because."}, each as text or as messages; completion may repeat the prompt"""
    prompt = columns.prompt(row)
    answer = columns.answer(prompt, row, "completion")
    if isinstance(row.get("completion"), str) and len(answer) == 1:
        answer = [columns.reasoned(answer[0], row)]
    return [{"messages": prompt + answer, **columns.tools(row)}]


def question_answer(row: dict) -> list[dict]:
    """{"question": "2 + 2?", "answer": "4", "rationale"?: "…"}; alpaca and prompt-completion may have such a column too"""
    return [
        {
            "messages": [
                user(columns.text(row, "question")),
                columns.reasoned(assistant(columns.text(row, "answer")), row),
            ]
        }
    ]


def preference(row: dict) -> list[dict]:
    """{"prompt": "Why?", "chosen": "Because.", "rejected": "Dunno."}, each as text or as messages

    chosen and rejected may repeat the prompt at their start, as UltraFeedback's do (for text see lib/data/repeats.py).
    """
    return [_preference(columns.prompt(row), row)]


def preference_implicit(row: dict) -> list[dict]:
    """{"chosen": [message, …], "rejected": [message, …]}: whole conversations; their common start is the prompt"""
    prompt, chosen, rejected = split_common(*(read_turns(row.get(side), side) for side in ("chosen", "rejected")))
    return [{"prompt": prompt, "chosen": chosen, "rejected": rejected, **columns.tools(row)}]


def sharegpt_preference(row: dict) -> list[dict]:
    """{"conversations": [{"from": "human", …}], "chosen": {"from": "gpt", …}, "rejected": {"from": "gpt", …}}"""
    return [_preference(sharegpt(row)[0]["messages"], row)]


def hh_rlhf(row: dict) -> list[dict]:
    """{"chosen": "\\n\\nHuman: Why?\\n\\nAssistant: Because.", "rejected": "\\n\\nHuman: Why?\\n\\nAssistant: No."}"""
    prompt, chosen, rejected = split_common(*(read_transcript(row.get(side), side) for side in ("chosen", "rejected")))
    return [{"prompt": prompt, "chosen": chosen, "rejected": rejected}]


def labelled(row: dict) -> list[dict]:
    """{"prompt": "Why?", "completion": "Because.", "label": true}; completion may repeat the prompt"""
    prompt = columns.prompt(row)
    return [
        {
            "prompt": prompt,
            "completion": columns.answer(prompt, row, "completion"),
            "label": columns.label(row),
            **columns.tools(row),
        }
    ]


def messages_labelled(row: dict) -> list[dict]:
    """{"messages": [… , {"role": "assistant", "content": "Because."}], "label": true}: the last answer is judged"""
    return [_last_judged(messages(row)[0]["messages"], row)]


def sharegpt_labelled(row: dict) -> list[dict]:
    """{"conversations": [… , {"from": "gpt", "value": "Because."}], "label": true}: the last answer is judged"""
    return [_last_judged(sharegpt(row)[0]["messages"], row)]


def pair(row: dict) -> list[dict]:
    """{"sentence1": "A cat sits.", "sentence2": "A cat is sitting.", "score": 4.6}"""
    try:
        score = float(row["score"])
    except (KeyError, TypeError, ValueError):
        raise BadRow(f"score is {row.get('score')!r}, not a number") from None
    return [{"a": columns.text(row, "sentence1"), "b": columns.text(row, "sentence2"), "score": score}]


def contrastive(row: dict, anchor: str, positive: str, negative: str) -> list[dict]:
    """{"anchor": "What is red?", "positive": "Red is a colour.", "negative"?: "Blue is a colour.", "negatives"?: […]}

    Other names of the columns are in FORMATS. Negatives are in the column `negative`, its plural, and both with a number: negative_1 … Each
    column may hold a list of texts; each positive makes a row.
    """
    named = [c for c in row if re.fullmatch(rf"{negative}s?(_?\d+)?", c) and row[c] is not None]
    negatives = [text for column in named for text in columns.texts(row, column)]
    if row.get(positive) == []:
        raise BadRow(f"{positive} is an empty list")
    return [
        {"anchor": columns.text(row, anchor), "positive": text, "negatives": negatives}
        for text in columns.texts(row, positive)
    ]


def classified(row: dict, text: str, second: str | None = None) -> list[dict]:
    """{"text": "Cheap and good.", "label": "positive"}, or two texts and their label; other names of the columns are in FORMATS.

    A label is a text, a whole number, or true or false. A column of whole numbers with gaps, which pandas writes as 1.0, is read as 1.
    """
    return [
        {
            "text": columns.text(row, text),
            "second": None if second is None else columns.text(row, second),
            "label": columns.class_name(row),
        }
    ]


def prompt_only(row: dict) -> list[dict]:
    """{"prompt": "Why?"}, as text or as messages"""
    return [{"prompt": columns.prompt(row), **columns.tools(row)}]


# Types of a column, by its values. A flag is true/false as JSON, CSV or pandas writes it.
TEXT, TRANSCRIPT, TURNS, TURN = "text", "transcript", "messages", "message"
FLAG, NUMBER, LIST = "flag", "number", "list"
ANSWER = (TEXT, TRANSCRIPT, TURNS, TURN, NUMBER, FLAG)
PROMPT = (TEXT, TRANSCRIPT, TURNS)
WORDS = (TEXT, TRANSCRIPT, NUMBER, FLAG)


class Format(NamedTuple):
    kind: Kind
    read: Callable[[dict], list[dict]]
    needs: dict[str, tuple[str, ...]]
    """{column: types that its values may have}. Other columns are ignored."""


FORMATS: dict[str, Format] = {
    "hh-rlhf": Format("preference", hh_rlhf, {"chosen": (TRANSCRIPT,), "rejected": (TRANSCRIPT,)}),
    "preference": Format("preference", preference, {"prompt": PROMPT, "chosen": ANSWER, "rejected": ANSWER}),
    "sharegpt-preference": Format(
        "preference", sharegpt_preference, {"conversations": (TURNS,), "chosen": ANSWER, "rejected": ANSWER}
    ),
    "alpaca-preference": Format(
        "preference", alpaca_preference, {"instruction": (TEXT,), "chosen": ANSWER, "rejected": ANSWER}
    ),
    "preference-implicit": Format("preference", preference_implicit, {"chosen": (TURNS,), "rejected": (TURNS,)}),
    "labelled": Format("labelled", labelled, {"prompt": PROMPT, "completion": ANSWER, "label": (FLAG,)}),
    "messages-labelled": Format("labelled", messages_labelled, {"messages": (TURNS,), "label": (FLAG,)}),
    "sharegpt-labelled": Format("labelled", sharegpt_labelled, {"conversations": (TURNS,), "label": (FLAG,)}),
    "alpaca-labelled": Format("labelled", alpaca_labelled, {"instruction": (TEXT,), "output": WORDS, "label": (FLAG,)}),
    "messages": Format("chat", messages, {"messages": (TURNS,)}),
    "sharegpt": Format("chat", sharegpt, {"conversations": (TURNS,)}),
    "self-instruct": Format("chat", self_instruct, {"instruction": (TEXT,), "instances": (LIST,)}),
    "alpaca": Format("chat", alpaca, {"instruction": (TEXT,), "output": WORDS}),
    "prompt-completion": Format("chat", prompt_completion, {"prompt": PROMPT, "completion": ANSWER}),
    "question-answer": Format("chat", question_answer, {"question": (TEXT,), "answer": WORDS}),
    "pair": Format("pair", pair, {"sentence1": (TEXT,), "sentence2": (TEXT,), "score": (NUMBER, FLAG)}),
    "text": Format("text", plain_text, {"text": (TEXT, TRANSCRIPT)}),
    "prompt": Format("prompt", prompt_only, {"prompt": PROMPT}),
}
CONTRASTIVE = (
    ("anchor", "positive", "negative"), ("query", "positive", "negative"), ("query", "passage", "negative"), ("question", "passage", "negative"),
    ("query", "pos", "neg"), ("sent0", "sent1", "hard_neg"), ("sentence1", "sentence2", "negative"),
)  # fmt: skip
"""Columns of anchor, positive and negatives, as sentence-transformers', BGE's and SimCSE's data name them."""
FORMATS |= {
    f"{anchor}-{positive}": Format(
        "contrastive",
        partial(contrastive, anchor=anchor, positive=positive, negative=negative),
        {anchor: (TEXT,), positive: (*WORDS, LIST)},
    )
    for anchor, positive, negative in CONTRASTIVE
}

CLASSIFIED = (
    ("text",), ("sentence",), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "sentence"), ("question1", "question2"),
)  # fmt: skip
"""Columns of the texts beside `label`, as GLUE, SNLI and most sets of labelled texts name them."""
FORMATS |= {
    "-".join([*texts, "label"]): Format(
        "classified",
        partial(classified, text=texts[0], second=[*texts, None][1]),
        dict.fromkeys(texts, WORDS) | {"label": (TEXT, NUMBER, FLAG)},
    )
    for texts in CLASSIFIED
}


def _preference(prompt: list[Message], row: dict) -> dict:
    return {
        "prompt": prompt,
        **{side: columns.answer(prompt, row, side) for side in ("chosen", "rejected")},
        **columns.tools(row),
    }


def _alpaca_prompt(row: dict) -> list[Message]:
    past = []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise BadRow(f"history is {kind_of(history)}, not a list of [question, answer]")
    for exchange in history:
        if not isinstance(exchange, list) or len(exchange) != 2 or not all(isinstance(x, str) for x in exchange):
            raise BadRow("history isn't a list of [question, answer]")
        past += [user(exchange[0]), assistant(exchange[1])]
    asked, given = columns.text(row, "instruction"), row.get("input")
    given = "" if given is None or (isinstance(given, str) and not given.strip()) else columns.text(row, "input")
    return with_system(row.get("system"), [*past, user(f"{asked}\n{given}" if given else asked)])


def _last_judged(turns: list[Message], row: dict) -> dict:
    """Makes the last answer, with the tool calls that led to it, the completion of a labelled row."""
    last_asked = max((i for i, m in enumerate(turns) if m["role"] == "user"), default=-1)
    return {
        "prompt": turns[: last_asked + 1],
        "completion": turns[last_asked + 1 :],
        "label": columns.label(row),
        **columns.tools(row),
    }
