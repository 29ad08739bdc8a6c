"""The demo task as an evaluation: scores of one answer, and the rule that decides which of two answers is better.

The task itself, its rows and its preference rule are described in lib/data/demo.py.
"""

from __future__ import annotations

from itertools import islice
from typing import ClassVar

from lib.data import demo
from lib.evals.task import Example, Statistic


class DemoTask:
    """Held-out messages; the reference is the ticket line that the message requests."""

    name = "demo"
    version = demo.VERSION
    metrics: ClassVar = {"exact": Statistic(), "slots": Statistic("mean"), "terse": Statistic()}

    def examples(self, limit: int | None = None) -> list[Example]:
        """Returns the first `limit` held-out messages (None: all), always the same ones."""
        n = demo.HELDOUT_ROWS["prompt"] if limit is None else min(limit, demo.HELDOUT_ROWS["prompt"])
        return [
            Example(id=f"demo-{i}", prompt=demo.prompt_messages(message), reference=order.line())
            for i, (order, message) in enumerate(islice(demo.orders("prompt", "heldout"), n))
        ]

    def score(self, example: Example, completion: str) -> dict[str, float]:
        """Returns the scores of one answer, each 0 to 1.

        exact: its only ticket line equals the reference; other text around the line is ignored.
        slots: share of the six slots that are right.
        terse: the answer is a ticket line and nothing else, right or wrong.
        """
        order, reference = demo.parse(completion), demo.parse(example.reference)
        return {
            "exact": float(order == reference),
            "slots": demo.slots(order, reference),
            "terse": float(order is not None and completion.strip() == order.line()),
        }

    def reference(self, answer: str) -> str:
        """Returns the ticket line of a right answer. Raises ValueError if there isn't exactly one."""
        line = self.final(answer)
        if line is None:
            raise ValueError(f"its answer has no ticket line, or several: {answer!r}")
        return line

    def final(self, completion: str) -> str | None:
        """Returns the only ticket line; None if there is no such line, or more than one."""
        order = demo.parse(completion)
        return order.line() if order else None


def better(example: Example, a: str, b: str) -> float:
    """Returns 1.0 if answer a beats b, 0.0 if b beats a, 0.5 for a tie.

    A right answer beats a wrong one. Of two right answers, the bare line beats the line with pleasantries. Two wrong answers
    tie, whatever their style.
    """
    score = DemoTask().score
    rank_a, rank_b = (_rank(score(example, answer)) for answer in (a, b))
    return 0.5 + 0.5 * ((rank_a > rank_b) - (rank_a < rank_b))


def _rank(scores: dict[str, float]) -> float:
    return scores["exact"] * (1 + scores["terse"])
