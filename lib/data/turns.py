"""Splits conversations into prompts and answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lib.data.marks import learnt

if TYPE_CHECKING:
    from datasets import Dataset


def per_answer(rows: Dataset | None) -> Dataset | None:
    """Converts {"messages"} rows to one {"prompt", "completion"} row for each assistant message that is to be learnt, with
    all messages before it as the prompt.

    The trainer then learns every answer of a conversation and nothing else, with any chat template. Masking answers
    inside whole conversations would need templates with {% generation %} marks, which most models don't have. Rows of
    other kinds, and None, are returned unchanged.
    """
    if rows is None or "messages" not in rows.column_names:
        return rows

    import pyarrow as pa
    from datasets import Features

    from lib.data.exact import ExactJson, array

    columns = ["prompt", "completion", *(["tools"] if "tools" in rows.column_names else [])]

    def split(batch: dict) -> pa.Table:
        out: dict[str, list] = {c: [] for c in columns}
        for values in zip(*batch.values(), strict=True):
            row = dict(zip(batch, values, strict=True))
            for i in learnt(row):
                out["prompt"].append(row["messages"][:i])
                out["completion"].append([row["messages"][i]])
                if "tools" in out:
                    out["tools"].append(row["tools"])
        return pa.table({c: array(v) for c, v in out.items()})

    return rows.map(
        split, batched=True, remove_columns=rows.column_names, features=Features({c: ExactJson() for c in columns})
    )


def prompts(rows: Dataset | None, count: int) -> list:
    """Returns at most `count` prompts: the messages before a conversation's last answer, or the first half of a text.

    Raises ValueError if there are no rows.
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
