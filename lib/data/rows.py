"""Canonical rows: the eight kinds into which every data source is converted, and the checks that reject a row.

    text        {"text": str}
    chat        {"messages": [message, …], "tools"?: [tool, …], "unlearnt"?: [int, …]}
                                                       the last message is the assistant's; unlearnt: indices of
                                                       assistant messages that are context only (lib/data/marks.py)
    prompt      {"prompt": [message, …], "tools"?: […]}                         the last message is a user's or a tool's
    preference  {"prompt": […], "chosen": […], "rejected": […], "tools"?: […]}
                                                       chosen/rejected follow the prompt: messages of the assistant only,
                                                       or of any role if a stage wants COMPARED
    problem     {"prompt": […], "reference": str}                            what a task's score compares an answer with
    labelled    {"prompt": […], "completion": […], "label": bool, "tools"?: […]}
                                                       label true: a wanted answer (KTO, Ethayarajh et al. 2024)
    pair        {"a": str, "b": str, "score": float}                            sentence similarity
    contrastive {"anchor": str, "positive": str, "negatives": [str, …]}         a query, its passage, and passages that aren't
    classified  {"text": str, "second": str | None, "label": str}               a text, or a pair of texts, and its class

A message is {"role": "system" | "user" | "assistant" | "tool", "content": str}; an assistant's may also have
"reasoning_content": str and "tool_calls": [{"type": "function", "function": {"name": str, "arguments": dict}}],
the keys that transformers' chat templates read.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NotRequired, TypedDict

Kind = Literal["text", "chat", "prompt", "problem", "preference", "labelled", "pair", "contrastive", "classified"]
Message = dict[str, Any]


class Text(TypedDict):
    text: str


class Chat(TypedDict):
    messages: list[Message]
    tools: NotRequired[list[dict]]
    unlearnt: NotRequired[list[int]]


class Prompt(TypedDict):
    prompt: list[Message]
    tools: NotRequired[list[dict]]


class Problem(TypedDict):
    prompt: list[Message]
    reference: str
    tools: NotRequired[list[dict]]


class Preference(TypedDict):
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: NotRequired[list[dict]]


class Labelled(TypedDict):
    prompt: list[Message]
    completion: list[Message]
    label: bool
    tools: NotRequired[list[dict]]


class Pair(TypedDict):
    a: str
    b: str
    score: float


class Contrastive(TypedDict):
    anchor: str
    positive: str
    negatives: list[str]


class Classified(TypedDict):
    text: str
    second: str | None
    label: str


KINDS: dict[str, type] = {
    "text": Text,
    "chat": Chat,
    "prompt": Prompt,
    "problem": Problem,
    "preference": Preference,
    "labelled": Labelled,
    "pair": Pair,
    "contrastive": Contrastive,
    "classified": Classified,
}


COMPARED = "comparison"
"""What a stage wants instead of "preference" if it scores conversations as a whole: the two may then differ from any message on."""


class BadRow(ValueError):
    """One row can't be used. Counted and shown with its line; the job stops unless data.bad_rows is skip."""


def missing_as_null(fields: dict) -> dict:
    """Replaces NaN and ±Infinity, which pandas and Python's json write for missing values, with None."""
    if float not in map(type, fields.values()):  # the fast path, as this runs for every row and message
        return fields
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}


# Roles that may follow each role. Templates such as Llama 2's and Gemma's raise on anything else, others render it silently.
MAY_FOLLOW = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


def check_order(messages: list[Message], last: tuple[str, ...]) -> None:
    """Raises BadRow unless roles follow MAY_FOLLOW, no message is empty and the last one is by a role in `last`."""
    before = None
    for n, message in enumerate(messages, 1):
        role = message["role"]
        if role not in MAY_FOLLOW[before]:
            place = f"after {before}" if before else "first"
            raise BadRow(f"message {n} is by {role}, but {' or '.join(MAY_FOLLOW[before])} comes {place}")
        if role == "tool" and before == "assistant" and not messages[n - 2].get("tool_calls"):
            raise BadRow(f"message {n} is a tool's answer, but the assistant called no tool")
        # A tool may return nothing, and a message with a tool call may have no text.
        if role != "tool" and not message.get("tool_calls") and not message["content"].strip():
            raise BadRow(f"message {n} ({role}) is empty")
        before = role
    if before not in last:
        raise BadRow(f"ends with {before}, not {' or '.join(last)}" if before else "has no messages")


def check_answer(answer: list[Message], side: str) -> None:
    """Raises BadRow if an answer contains messages of other roles, because all tokens of an answer carry loss."""
    other = next((m["role"] for m in answer if m["role"] != "assistant"), None)
    if other:
        raise BadRow(
            f"{side} has a {other} message after its first answer "
            "(it would be learnt like the model's own text; end both sides at the first answer that differs. "
            "A reward model accepts such pairs)"
        )


def check_row(kind: str, row: dict, compared: bool = False) -> None:
    """Raises BadRow with the reason if a canonical row of that kind can't be trained on.

    compared: answers are scored as a whole, and none of their tokens carries loss.
    """
    if kind == "text":
        if not row["text"].strip():
            raise BadRow("text is empty")
    elif kind == "chat":
        check_order(row["messages"], last=("assistant",))
    elif kind in ("prompt", "problem"):
        check_order(row["prompt"], last=("user", "tool"))
        if kind == "problem" and not row["reference"].strip():
            raise BadRow("the answer is empty")
    elif kind == "preference":
        check_order(row["prompt"], last=("user", "tool"))
        for side in ("chosen", "rejected"):
            try:
                check_order(row["prompt"] + row[side], last=("assistant",))
            except BadRow as why:
                silent = all(not m["content"].strip() and not m.get("tool_calls") for m in row[side])
                raise BadRow(f"{side}: {'the answer is empty' if silent else why}") from None
            if not compared:
                check_answer(row[side], side)
        if row["chosen"] == row["rejected"]:
            raise BadRow("chosen and rejected are the same")
    elif kind == "labelled":
        check_order(row["prompt"], last=("user", "tool"))
        check_order(row["prompt"] + row["completion"], last=("assistant",))
        check_answer(row["completion"], "completion")
    elif kind == "pair":
        if not row["a"].strip() or not row["b"].strip():
            raise BadRow("one of the two texts is empty")
        if not math.isfinite(row["score"]):
            raise BadRow(f"score is {row['score']}")
    elif kind == "contrastive":
        if row["anchor"].strip() == row["positive"].strip():
            raise BadRow("the anchor and its positive are the same text")
        if row["positive"].strip() in (text.strip() for text in row["negatives"]):
            raise BadRow("the positive is also a negative")
    elif kind == "classified":
        if not row["text"].strip() or (row["second"] is not None and not row["second"].strip()):
            raise BadRow("a text is empty")
        if not row["label"]:
            raise BadRow("label is empty")
    else:
        raise AssertionError(kind)


def _tools(row: dict) -> dict:
    return {"tools": row["tools"]} if row.get("tools") else {}


def _chosen(row: dict) -> list[dict]:
    return [{"messages": row["prompt"] + row["chosen"], **_tools(row)}]


def _unpaired(row: dict) -> list[dict]:
    return [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": True, **_tools(row)},
        {"prompt": row["prompt"], "completion": row["rejected"], "label": False, **_tools(row)},
    ]


def _wanted(row: dict) -> list[dict]:
    return [{"messages": row["prompt"] + row["completion"], **_tools(row)}] if row["label"] else []


def _unanswered(row: dict) -> list[dict]:
    last = max((i for i, m in enumerate(row["messages"]) if m["role"] == "assistant"), default=0)
    if not last:
        raise BadRow("no assistant answers")
    return [{"prompt": row["messages"][:last], **_tools(row)}]


def _problem(row: dict) -> list[dict]:
    last = max((i for i, m in enumerate(row["messages"]) if m["role"] == "assistant"), default=0)
    prompt = _unanswered(row)[0]
    return [{**prompt, "reference": row["messages"][last]["content"]}]


def _problem_of_pair(row: dict) -> list[dict]:
    return [{"prompt": row["prompt"], "reference": row["chosen"][-1]["content"], **_tools(row)}]


def _unclassified(row: dict) -> list[dict]:
    return [{"text": text} for text in (row["text"], row["second"]) if text is not None]


def _prompt_alone(row: dict) -> list[dict]:
    return [{"prompt": row["prompt"], **_tools(row)}]


# (kind found, kind wanted) -> (function, description shown to the user). Listed are only conversions that keep everything
# a stage of the wanted kind could use: an answer that a person rejected is not to be imitated. Chat is never converted to
# text here, since only the model's own template can do that.
CONVERSIONS = {
    ("preference", "chat"): (_chosen, "each prompt with its chosen answer"),
    ("labelled", "chat"): (_wanted, "only the answers labelled true"),
    ("preference", "labelled"): (_unpaired, "chosen answers as true, rejected ones as false"),
    ("chat", "prompt"): (_unanswered, "each conversation up to its last answer"),
    ("chat", "problem"): (_problem, "each conversation up to its last answer, which is the reference"),
    ("preference", "problem"): (_problem_of_pair, "the prompts, each with its chosen answer as the reference"),
    ("preference", "prompt"): (_prompt_alone, "the prompts alone"),
    ("labelled", "prompt"): (_prompt_alone, "the prompts alone"),
    ("classified", "text"): (_unclassified, "the texts without their labels"),
}


def prompts_of(kind: str, row: dict) -> list[str]:
    """Returns the prompts that a row answers, as strings, in order. None of them may be on both sides of the split.

    A conversation with three answers has three prompts, each all the messages before that answer. A text is its own prompt, and so is an anchor.
    """
    if kind == "text":
        return [row["text"]]
    if kind == "pair":
        return [f"{row['a']}\n{row['b']}"]
    if kind == "contrastive":
        return [row["anchor"]]
    if kind == "classified":
        return [row["text"] if row["second"] is None else f"{row['text']}\n{row['second']}"]
    messages = row["messages"] if kind == "chat" else row["prompt"]
    end = [] if kind == "chat" else [len(messages)]
    ends = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i > 0] + end
    turns = [f"{m['role']} {m['content']} {m.get('tool_calls') or ''}" for m in messages]
    return ["\n".join(turns[:i]) for i in ends]
