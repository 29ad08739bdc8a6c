"""From conversations to prompt and answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset


def per_answer(rows: Dataset | None) -> Dataset | None:
    """{"messages"} rows → one {"prompt", "completion"} row for each assistant message, with all before it as prompt.

    The trainer then learns every answer of a conversation and nothing else, with any chat template: masking answers
    inside whole conversations needs templates with {% generation %} marks, which most models don't have. Rows of other
    kinds, and None, come back as they are.
    """
    if rows is None or "messages" not in rows.column_names:
        return rows

    def split(batch: dict) -> dict:
        tools = batch.get("tools") or [None] * len(batch["messages"])
        out: dict[str, list] = {"prompt": [], "completion": []} | ({"tools": []} if "tools" in batch else {})
        for messages, tool in zip(batch["messages"], tools, strict=True):
            for i, message in enumerate(messages):
                if message["role"] == "assistant" and i:
                    out["prompt"].append(messages[:i])
                    out["completion"].append([message])
                    if "tools" in out:
                        out["tools"].append(tool)
        return out

    from datasets import Features, Json

    # Declared, because inferred types would come from the first thousand rows and not fit a later one with tool calls.
    columns = Features(
        {c: Json() for c in ("prompt", "completion", *(["tools"] if "tools" in rows.column_names else []))}
    )
    return rows.map(split, batched=True, remove_columns=rows.column_names, features=columns)


def prompts(rows: Dataset | None, count: int) -> list:
    """At most `count` prompts to answer: what comes before the last answer of a conversation, or the first half of a text.

    Raises ValueError where there are no rows.
    """
    if rows is None or not len(rows):
        raise ValueError("data.source: there are no held-out rows to answer. Raise data.heldout_fraction.")
    found = []
    for i in range(min(count, len(rows))):
        row = rows[i]
        if "text" in row:
            found.append(row["text"][: max(1, len(row["text"]) // 2)])
        else:
            last = max(k for k, m in enumerate(row["messages"]) if m["role"] == "assistant")
            found.append(row["messages"][:last])
    return found
