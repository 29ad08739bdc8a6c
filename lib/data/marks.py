"""Marks for assistant messages that are not to be learnt: they stay in the conversation as context, without loss.

Recognised are the spellings of OpenAI, Axolotl, ms-swift and others: `weight` or `loss_weight` 0; `train`, `training`,
`trainable` or `loss` false. On messages of other roles, which are never learnt, they have no effect. While a row is read,
the mark is `"weight": 0` in the message. In a canonical row it is beside the messages, so that no chat template sees it:

    {"messages": [user, assistant, user, assistant], "unlearnt": [1]}
"""

from __future__ import annotations

from lib.data.rows import BadRow, Message

MESSAGES = ("messages", "prompt", "chosen", "rejected", "completion")
SPELLINGS = ("weight", "loss_weight", "train", "training", "trainable", "loss")
_READ = frozenset((*SPELLINGS, "train_detail"))
_MEANS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def mark(turn: dict, where: str) -> dict:
    """Returns {"weight": 0} if an assistant's turn is not to be learnt, else {}. Raises BadRow for partial weights."""
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
    """Moves a row's marks from its messages to "unlearnt", in place. Returns the number of marks (0 for kinds other than chat).

    Raises BadRow if nothing is left to learn, or if the marked answer is the one that the row compares or judges.
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
        raise BadRow(
            f"{judged} is marked as not to be learnt (weight 0), but it is the answer that the row compares or judges"
        )
    for column in marked:
        row[column] = [_without(m) for m in row[column]]
    if kind != "chat":
        return 0
    row["unlearnt"] = marked["messages"]
    if not learnt(row):
        raise BadRow("every answer is marked as not to be learnt (weight 0)")
    return len(row["unlearnt"])


def learnt(row: dict) -> list[int]:
    """Returns the indices of a chat row's assistant messages that are learnt. A first message is never among them."""
    left_out = row.get("unlearnt") or ()
    return [i for i, m in enumerate(row["messages"]) if i and m["role"] == "assistant" and i not in left_out]


def _without(message: Message) -> Message:
    return {key: value for key, value in message.items() if key != "weight"}
