"""Rows as token ids and labels, for losses that TRL's own columns can't state: an answer of which only a part is learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lib.rendering.sequences import Settings, sequences

if TYPE_CHECKING:
    from datasets import Dataset

NOT_LEARNT = -100


def labelled(rows: Dataset | None, tokenizer, settings: Settings) -> Dataset | None:
    """Converts {"messages"} rows to one {"input_ids", "labels"} row for each learnt answer: the token ids of the conversation up to
    its end, and the same with -100 where a token carries no loss. TRL cuts and packs such rows as others. None is returned unchanged.
    """
    if rows is None:
        return None

    def render(batch: dict) -> dict:
        out: dict[str, list] = {"input_ids": [], "labels": []}
        given = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        for _, found in sequences(tokenizer, "chat", given, settings):
            if isinstance(found, Exception):
                raise found
            for s in found:
                out["input_ids"].append(s.ids)
                out["labels"].append([NOT_LEARNT] * s.start + s.ids[s.start :])
        return out

    return rows.map(render, batched=True, remove_columns=rows.column_names)
