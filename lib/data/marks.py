"""Marks that an assistant message is not to be learnt. It stays in the conversation as context and carries no loss.

The field's spellings, of OpenAI, Axolotl, ms-swift and others: `weight` or `loss_weight` 0, `train`, `training`,
`trainable` or `loss` false. On any other message they change nothing: those are never learnt. While a row is read the
mark is `"weight": 0` in the message; a canonical row has it beside the messages, so that no chat template sees it:

    {"messages": [user, assistant, user, assistant], "unlearnt": [1]}
"""

from __future__ import annotations

from lib.data.rows import BadRow, Message

MESSAGES = ("messages", "prompt", "chosen", "rejected", "completion")
SPELLINGS = ("weight", "loss_weight", "train", "training", "trainable", "loss")
_READ = frozenset((*SPELLINGS, "train_detail"))
_MEANS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def mark(turn: dict, where: str) -> dict:
    """{"weight": 0} for an assistant's turn that is not to be learnt, else {}. Raises BadRow for anything between."""
    if _READ.isdisjoint(turn):
        return {}
    found = {key: turn[key] for key in SPELLINGS if turn.get(key) is not None}
    for key, value in found.items():
        if str(value).strip().lower() not in _MEANS:
            raise BadRow(f"{where} has {key} {value!r} (0 or false: not learnt; 1 or true: learnt; nothing between)")
    if turn.get("train_detail"):
        raise BadRow(f"{where} has train_detail (an answer is learnt whole or not at all; set weight to 0 or 1)")
    meant = {_MEANS[str(value).strip().lower()] for value in found.values()}
    if len(meant) > 1:
        raise BadRow(f"{where} is marked both ways ({', '.join(f'{k}: {v!r}' for k, v in found.items())})")
    return {"weight": 0} if meant == {False} else {}


def settle(kind: str, row: dict) -> int:
    """Moves the marks of a row of that kind, in place, from its messages to "unlearnt". Returns how many a chat row has.

    Raises BadRow where nothing is left to learn, or where answers are compared or judged whole and one is marked.
    """
    marked = {
        column: places
        for column in MESSAGES
        if (places := [i for i, m in enumerate(row.get(column) or ()) if "weight" in m])
    }
    if not marked:
        return 0
    judged = next((column for column in ("chosen", "rejected", "completion") if column in marked), None)
    if judged:
        raise BadRow(f"{judged} is marked as not to be learnt (weight 0), but it is what the row is for")
    for column in marked:
        row[column] = [_without(m) for m in row[column]]
    if kind != "chat":
        return 0
    row["unlearnt"] = marked["messages"]
    if not learnt(row):
        raise BadRow("every answer is marked as not to be learnt (weight 0)")
    return len(row["unlearnt"])


def learnt(row: dict) -> list[int]:
    """Places of the assistant messages of a chat row that are learnt, each after at least one message."""
    left_out = row.get("unlearnt") or ()
    return [i for i, m in enumerate(row["messages"]) if i and m["role"] == "assistant" and i not in left_out]


def _without(message: Message) -> Message:
    return {key: value for key, value in message.items() if key != "weight"}
