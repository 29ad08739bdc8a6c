"""Text answers that begin with their prompt."""

import pytest

from lib.config.job import Data
from lib.data import load
from lib.data.repeats import without_prompt

pytestmark = pytest.mark.usefixtures("cache")
ASKED = "Which colour is the sky?"


@pytest.mark.parametrize(
    ("format", "row", "expected"),
    [
        (
            "preference",
            {"prompt": ASKED, "chosen": f"{ASKED} Grey.", "rejected": f" {ASKED}\n\nNo idea."},
            {"chosen": "Grey.", "rejected": "No idea."},
        ),
        ("prompt-completion", {"prompt": f"{ASKED} ", "completion": f"{ASKED} Grey."}, {"completion": "Grey."}),
        ("labelled", {"prompt": ASKED, "completion": f"{ASKED}Grey.", "label": True}, {"completion": "Grey."}),
        ("prompt-completion", {"prompt": "天空是什么颜色的呢？", "completion": "天空是什么颜色的呢？灰色。"}, {"completion": "灰色。"}),
        (
            "alpaca-preference",
            {"instruction": "Say it shorter.", "input": "Long.", "chosen": "Say it shorter.\nLong.\nL.", "rejected": "Say it shorter.\nLong.\nNo."},
            {"chosen": "L.", "rejected": "No."},
        ),
        # Only one answer of two repeats it: that may be why it is the worse one.
        ("preference", {"prompt": ASKED, "chosen": "Grey.", "rejected": f"{ASKED} Grey."}, None),
        # A greeting that is returned.
        ("preference", {"prompt": "Good day!", "chosen": "Good day! Hello.", "rejected": "Good day! Go."}, None),
        # A word that begins like the last one of the prompt; an answer that is only the prompt.
        ("prompt-completion", {"prompt": "Name me a cat", "completion": "Name me a category"}, None),
        ("prompt-completion", {"prompt": ASKED, "completion": f"{ASKED} "}, None),
        ("question-answer", {"question": ASKED, "answer": f"{ASKED} Grey."}, None),
        ("preference", {"prompt": None, "chosen": "x", "rejected": 3}, None),
    ],
)  # fmt: skip
def test_without_prompt(format, row, expected):
    assert without_prompt(format, row) == (expected and row | expected)


def test_taken_off_and_counted(write):
    """In text and in messages, where the conversation already had its prompt removed."""
    talk = [{"role": "user", "content": ASKED}]
    sides = {side: f"{word}." for side, word in (("chosen", "Grey"), ("rejected", "Red"))}
    text = {"prompt": ASKED} | {side: f"{ASKED} {word}" for side, word in sides.items()}
    chats = {"prompt": ASKED} | {s: [*talk, {"role": "assistant", "content": w}] for s, w in sides.items()}
    plain = {"prompt": ASKED} | sides
    loaded = load(Data(write("a.jsonl", [text, chats, plain]), heldout_fraction=0), ("preference",))
    assert [loaded.train[i] for i in range(3)] == [
        {"prompt": talk} | {s: [{"role": "assistant", "content": w}] for s, w in sides.items()}
    ] * 3
    assert loaded.check.repeats == loaded.check.summary()["repeats"] == 1
    assert "data: 1 rows repeat their prompt in the answer; it is taken off" in loaded.check.lines()


def test_message_answers_of_one_column_lose_it_too(write):
    talk = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": "Grey."}]
    rows = [{"prompt": talk[:1], "completion": talk}, {"prompt": talk[:1], "completion": talk, "label": True}]
    for name, row, want in (("a.jsonl", rows[0], "chat"), ("b.jsonl", rows[1], "labelled")):
        loaded = load(Data(write(name, [row]), heldout_fraction=0), (want,))
        found = loaded.train[0]
        assert found.get("messages", found.get("prompt", []) + found.get("completion", [])) == talk
