"""The generated orders: reproducible, their reasoning right line by line, and no held-out numbers in training."""

import re

import pytest

from lib.data import demo_steps
from lib.evals.task import Example
from lib.evals.tasks.demo_steps import DemoSteps

CHATS = {split: list(demo_steps.rows("chat", split)) for split in ("train", "heldout")}


def test_rows_are_the_same_every_time_and_the_documented_one_is_by_the_rule():
    for split, n in (("train", 3000), ("heldout", 400)):
        rows = CHATS[split]
        assert rows == list(demo_steps.rows("chat", split)) and len(rows) == n
        assert len({row["messages"][1]["content"] for row in rows}) == n
    order = demo_steps.Order("Priya", 255, ("headset", "fan"), (7, 3), (9, 4), 5)
    documented = " ".join(demo_steps.__doc__.split())
    assert order.line() == "$70 > Priya @255" and " ".join(order.steps().splitlines()) in documented
    assert demo_steps.SYSTEM in documented and order.line() in documented


@pytest.mark.parametrize("split", CHATS)
def test_every_step_is_right_and_leads_to_the_answer(split):
    for row in CHATS[split]:
        answer = row["messages"][-1]
        steps = answer["reasoning_content"].splitlines()
        for step in steps:
            left, _, right = step.partition(" = ")
            assert eval(left.replace("x", "*")) == int(right)  # the generated text: digits, x, + and -
        assert answer["content"].startswith(f"${steps[-1].split()[-1]} > ") and len(steps) == 4
        numbers = [int(n) for n in re.findall(r"\$(\d+)", row["messages"][1]["content"])]
        assert [int(steps[0].split()[2]), int(steps[1].split()[2]), int(steps[3].split()[2])] == numbers


def test_no_heldout_numbers_are_in_training():
    sums = {split: {row["messages"][-1]["reasoning_content"] for row in rows} for split, rows in CHATS.items()}
    assert not sums["train"] & sums["heldout"]
    prompts = {row["prompt"][-1]["content"] for row in demo_steps.rows("prompt", "heldout")}
    assert not prompts & {row["messages"][1]["content"] for row in CHATS["train"]}


def test_the_task_scores_the_final_line():
    task, example = DemoSteps(), Example("demo_steps-0", [], "$70 > Priya @255")
    assert task.examples(2)[0].reference == next(demo_steps.orders("prompt", "heldout"))[0].line()
    for text, exact, copied in (
        ("$70 > Priya @255", 1, 1), ("Sure:\n $70 > Priya @255\nBye", 1, 1), ("$71 > Priya @255", 0, 1),
        ("$70 > Mara @255", 0, 0), ("$70 > Priya @255\n$71 > Priya @255", 0, 0), ("", 0, 0),
    ):  # fmt: skip
        assert task.score(example, text) == {"exact": exact, "copied": copied}


def test_unknown_kind_is_refused():
    with pytest.raises(
        ValueError, match="demo_steps has rows for chat, prompt, problem; this stage wants 'preference'"
    ):
        next(demo_steps.rows("preference", "train"))
