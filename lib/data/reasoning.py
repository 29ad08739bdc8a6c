"""Reasoning in answers: where it is found in a row, how it is written into an answer, and how an answer is read back.

Written, it stands before the answer, as most open models write it (DeepSeek-R1, 2025, https://arxiv.org/abs/2501.12948):

    <think>
    7 x 9 = 63
    </think>

    $63 > Priya @255

It is found in a message's reasoning_content, between <think> and </think>, and before the last line of an answer that ends in
"#### 63", as GSM8K's do. Without data.reasoning, rows are left as they are, and the chat template writes or drops reasoning_content.
"""

from __future__ import annotations

import re

from lib.data.marks import MESSAGES, learnt
from lib.data.rows import BadRow, Message

OPEN, CLOSE = "<think>", "</think>"
NONE = f"{OPEN}\n\n{CLOSE}\n\n"
"""The start of an answer without reasoning."""
COLUMNS = ("reasoning_content", "reasoning", "rationale", "thought", "thinking")
"""Columns beside an answer's that hold its reasoning."""

_GSM8K = re.compile(r"(.*\S)\s*\n(####.*)", re.DOTALL)


def written(reasoning: str, answer: str) -> str:
    return f"{OPEN}\n{reasoning.strip()}\n{CLOSE}\n\n{answer}"


def answer(text: str) -> str:
    """Returns an answer's text after its reasoning: what follows the last </think>; "" if <think> is not closed."""
    _, close, after = text.rpartition(CLOSE)
    return after.lstrip("\n") if close else "" if text.lstrip().startswith(OPEN) else text


def settle(kind: str, row: dict, how: str | None) -> tuple[list[dict], int]:
    """Applies data.reasoning to a canonical row. Returns (the rows it becomes, the number of its answers with reasoning).

    Reasoning stays in an answer only where a model would see it: in the answer itself, and in earlier ones since the last user's
    message, as chat templates write it (Qwen3). A conversation with reasoning in earlier answers therefore becomes one row for each
    answer that is learnt. Raises BadRow if an answer has reasoning and nothing after it.
    """
    if how is None:
        return [row], sum(_has(m) for column in MESSAGES for m in row.get(column) or ())
    found = {column: [_apart(m) for m in row[column]] for column in MESSAGES if column in row}
    number = sum("reasoning_content" in m for messages in found.values() for m in messages)
    row = row | found
    if not number:
        return [row], 0
    if how == "remove":
        return [row | {c: [_without(m) for m in messages] for c, messages in found.items()}], number
    if kind != "chat":
        out = {c: [_with(m) for m in messages] for c, messages in found.items() if c != "prompt"}
        return [row | out | ({"prompt": [_without(m) for m in found["prompt"]]} if "prompt" in found else {})], number
    messages, rows = row["messages"], []
    answers = learnt(row)
    if not any("reasoning_content" in m for m in messages[: answers[-1]]):
        return [row | {"messages": [_with(m) for m in messages]}], number
    for i in answers:
        since = max((k for k in range(i) if messages[k]["role"] == "user"), default=0)
        seen = [_with(m) if k > since else _without(m) for k, m in enumerate(messages[: i + 1])]
        context = [k for k, m in enumerate(seen[:-1]) if m["role"] == "assistant"]
        rows.append(row | {"messages": seen} | ({"unlearnt": context} if context else {}))
    return rows, number


def _has(message: Message) -> bool:
    return message["role"] == "assistant" and (
        "reasoning_content" in message or message["content"].lstrip().startswith(OPEN)
    )


def _apart(message: Message) -> Message:
    """Returns a message with its reasoning in reasoning_content and out of its content."""
    if message["role"] != "assistant":
        return message
    content, before = message["content"], message.get("reasoning_content", "")
    if CLOSE in content or content.lstrip().startswith(OPEN):
        thought, close, content = content.rpartition(CLOSE)
        if not close:
            raise BadRow(f"an answer opens {OPEN} and doesn't close it")
        thoughts = before.strip(), thought.strip().removeprefix(OPEN).strip()
        before = "\n".join(dict.fromkeys(t for t in thoughts if t))
        content = content.lstrip("\n")
    elif not before and (steps := _GSM8K.fullmatch(content)):
        before, content = steps.groups()
    out = {k: v for k, v in message.items() if k != "reasoning_content"} | {"content": content}
    if not before.strip():
        return out
    if not content.strip() and not message.get("tool_calls"):
        raise BadRow("an answer has reasoning and nothing after it")
    if OPEN in before or CLOSE in before:
        raise BadRow(f"an answer has more than one {OPEN} or {CLOSE}, or text before {OPEN}")
    return out | {"reasoning_content": before}


def _with(message: Message) -> Message:
    if "reasoning_content" not in message:
        return message
    return _without(message) | {"content": written(message["reasoning_content"], message["content"])}


def _without(message: Message) -> Message:
    return {k: v for k, v in message.items() if k != "reasoning_content"}
