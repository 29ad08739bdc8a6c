"""The demo task's scores and its preference rule, on hand-written answers."""

import pytest

from lib.data import demo
from lib.evals.task import Example
from lib.evals.tasks.demo import DemoTask, better

LINE = "3xdesk lamp > Mara @214 TUE 14:30"
WRONG = "2xdesk lamp > Mara @214 TUE 14:30"
POLITE, POLITE_WRONG = f"Of course!\n{LINE}\nHave a lovely day!", f"Of course!\n{WRONG}\nHave a lovely day!"
EXAMPLE = Example(id="x", prompt=demo.prompt_messages("Three desk lamps …"), reference=LINE)


@pytest.mark.parametrize(
    ("answer", "exact", "slots", "terse"),
    [
        (LINE, 1, 1, 1),
        (f" {LINE}\n", 1, 1, 1),
        (POLITE, 1, 1, 0),
        (WRONG, 0, 5 / 6, 1),
        (POLITE_WRONG, 0, 5 / 6, 0),
        ("1xfan > Olek @101 MON 08:00", 0, 0, 1),
        ("3xdesk lamp > Mara @214 MON 08:00", 0, 4 / 6, 1),
        (f"{LINE}\n{WRONG}", 0, 0, 0),  # two tickets are not a valid answer
        ("3 desk lamps for Mara in room 214", 0, 0, 0),
        (LINE.lower(), 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_scores(answer, exact, slots, terse):
    assert DemoTask().score(EXAMPLE, answer) == pytest.approx({"exact": exact, "slots": slots, "terse": terse})


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (LINE, WRONG, 1.0),
        (POLITE, WRONG, 1.0),  # a right answer beats a wrong one whatever the style
        (LINE, POLITE_WRONG, 1.0),
        (LINE, POLITE, 1.0),
        (LINE, LINE, 0.5),
        (POLITE, POLITE.replace("Of course!", "Sure."), 0.5),
        (WRONG, POLITE_WRONG, 0.5),
        (WRONG, "", 0.5),
    ],
)
def test_the_rule_says_which_answer_is_better(a, b, expected):
    assert better(EXAMPLE, a, b) == expected
    assert better(EXAMPLE, b, a) == 1 - expected


def test_examples_are_the_heldout_prompts_and_their_references_score_one():
    task = DemoTask()
    examples = task.examples()
    assert [e.prompt for e in examples] == [row["prompt"] for row in demo.rows("prompt", "heldout")]
    assert task.examples(5) == examples[:5]
    assert len({e.id for e in examples}) == len(examples)
    for e in examples:
        assert task.score(e, e.reference) == {"exact": 1.0, "slots": 1.0, "terse": 1.0}


def test_the_rule_agrees_with_every_generated_pair():
    for row, (order, _) in zip(demo.rows("preference", "heldout"), demo.orders("preference", "heldout"), strict=False):
        example = Example(id="", prompt=row["prompt"], reference=order.line())
        assert better(example, row["chosen"][0]["content"], row["rejected"][0]["content"]) == 1.0
