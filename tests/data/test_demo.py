"""The generated demo data: reproducible, with held-out rows apart from training, and every pair by the stated rule."""

import random
from collections import Counter

import pytest

from lib.data import demo

KINDS = ("chat", "preference", "prompt", "contrastive", "classified")


def messages_of(row: dict) -> list[dict]:
    if "anchor" in row or "text" in row:
        return [{"role": "user", "content": row.get("anchor") or row["text"]}]
    return row["prompt"] if "prompt" in row else row["messages"][:-1]


def user(row: dict) -> str:
    return messages_of(row)[-1]["content"]


def reference(kind: str, split: str) -> list[demo.Order]:
    n = (demo.TRAIN_ROWS if split == "train" else demo.HELDOUT_ROWS)[kind]
    return [order for (order, _), _ in zip(demo.orders(kind, split), range(n), strict=False)]


def test_the_row_in_the_docstring_is_a_training_row():
    documented = [line.strip().split(maxsplit=1) for line in demo.__doc__.split("\n\n")[2].splitlines()]
    assert documented in [[[m["role"], m["content"]] for m in row["messages"]] for row in demo.rows("chat", "train")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_rows_are_the_same_every_time_and_as_many_as_stated(kind, split):
    rows = list(demo.rows(kind, split))
    assert rows == list(demo.rows(kind, split))
    assert len(rows) == (demo.TRAIN_ROWS if split == "train" else demo.HELDOUT_ROWS)[kind]
    assert len({user(row) for row in rows}) == len(rows)


def test_other_use_of_random_does_not_change_the_rows():
    random.seed(1)
    first = list(demo.rows("chat", "heldout"))
    random.seed(2)
    assert first == list(demo.rows("chat", "heldout"))


def test_no_heldout_prompt_or_pair_of_name_and_item_is_in_training():
    train = {user(row) for kind in KINDS for row in demo.rows(kind, "train")}
    heldout = {user(row) for kind in KINDS for row in demo.rows(kind, "heldout")}
    assert not train & heldout
    pairs = {
        split: {(o.name, o.item) for kind in KINDS for o in reference(kind, split)} for split in ("train", "heldout")
    }
    assert not pairs["train"] & pairs["heldout"]
    assert {name for name, _ in pairs["train"]} == {name for name, _ in pairs["heldout"]} == set(demo.NAMES)
    assert {item for _, item in pairs["train"]} == {item for _, item in pairs["heldout"]} == set(demo.ITEMS)


def test_a_tenth_of_all_name_and_item_pairs_is_held_out():
    held = Counter(name for name in demo.NAMES for item in demo.ITEMS if demo.is_heldout(name, item))
    assert set(held.values()) == {len(demo.ITEMS) // 10}


def test_chat_answers_are_right_and_two_of_five_bare():
    rows, orders = list(demo.rows("chat", "train")), reference("chat", "train")
    answers = [row["messages"][-1]["content"] for row in rows]
    assert [demo.parse(a) for a in answers] == orders
    assert sum(a == o.line() for a, o in zip(answers, orders, strict=True)) == len(rows) * 2 // 5


def test_labels_are_the_days_of_the_orders():
    rows, orders = list(demo.rows("classified", "train")), reference("classified", "train")
    assert [row["label"] for row in rows] == [order.day for order in orders] and {*demo.DAYS} == {o.day for o in orders}


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_preference_pair_obeys_the_rule(split):
    kinds = Counter()
    for row, order in zip(demo.rows("preference", split), reference("preference", split), strict=True):
        (chosen,), (rejected,) = row["chosen"], row["rejected"]
        assert chosen["role"] == rejected["role"] == "assistant"
        chosen, rejected = chosen["content"], rejected["content"]
        assert demo.parse(chosen) == order, "the chosen answer is right"
        if demo.parse(rejected) == order:
            assert chosen == order.line() and rejected != order.line(), "of two right ones the bare line wins"
            kinds["style"] += 1
        else:
            assert demo.slots(demo.parse(rejected), order) == 5 / 6, "exactly one slot is wrong"
            kinds[
                "bare" if chosen == order.line() else "polite", "bare" if len(rejected.splitlines()) == 1 else "polite"
            ] += 1
    n = kinds.total()
    assert kinds["style"] == n // 2
    for mix in (("bare", "bare"), ("bare", "polite"), ("polite", "bare"), ("polite", "polite")):
        assert kinds[mix] > n / 12, f"both styles on both sides: {kinds}"


@pytest.mark.parametrize(
    ("hour", "minute", "words"),
    [
        (8, 0, "eight in the morning"),
        (9, 15, "quarter past nine in the morning"),
        (11, 45, "quarter to twelve in the morning"),
        (12, 0, "noon"),
        (12, 30, "half past twelve in the afternoon"),
        (12, 45, "quarter to one in the afternoon"),
        (14, 30, "half past two in the afternoon"),
        (18, 15, "quarter past six in the evening"),
    ],
)
def test_times_in_words(hour, minute, words):
    assert demo._time(hour, minute) == words


def test_parse_finds_the_only_ticket_line():
    order = demo.Order("3", "desk lamp", "Mara", "214", "TUE", "14:30")
    assert order.line() == "3xdesk lamp > Mara @214 TUE 14:30"
    assert demo.parse(order.line()) == order
    assert demo.parse(f"Sure!\n  {order.line()} \nBye.") == order
    assert demo.parse(f"{order.line()}\n{order.line()}") is None
    assert demo.parse(f"Here: {order.line()}") is None
    assert demo.parse("3 desk lamps for Mara") is None
    assert demo.parse("") is None


def test_unknown_kind_and_split_are_refused():
    with pytest.raises(
        ValueError,
        match=r"data.source: demo has rows for chat, preference, prompt, problem, text, contrastive, classified; this stage wants 'pair'",
    ):
        next(demo.rows("pair", "train"))
    with pytest.raises(ValueError, match="not 'test'"):
        next(demo.rows("chat", "test"))
