"""The demo task in steps as an evaluation: scores the final answer, whatever reasoning stands before it.

The task itself and its rows are described in lib/data/demo_steps.py.
"""

from __future__ import annotations

from itertools import islice
from typing import ClassVar

from lib.data import demo_steps
from lib.evals.task import Example, Statistic


class DemoSteps:
    """Held-out orders; the reference is the line with the right total."""

    name = "demo_steps"
    version = demo_steps.VERSION
    metrics: ClassVar = {"exact": Statistic(), "copied": Statistic()}

    def examples(self, limit: int | None = None) -> list[Example]:
        """Returns the first `limit` held-out messages (None: all), always the same ones."""
        most = demo_steps.HELDOUT_ROWS["prompt"]
        return [
            Example(id=f"demo_steps-{i}", prompt=demo_steps.prompt_messages(message), reference=order.line())
            for i, (order, message) in enumerate(
                islice(demo_steps.orders("prompt", "heldout"), most if limit is None else min(limit, most))
            )
        ]

    def score(self, example: Example, completion: str) -> dict[str, float]:
        """Returns the scores of one answer, each 0 or 1.

        exact: its only line `$total > name @room` equals the reference. copied: name and room are right, whatever the total.
        """
        found = self.final(completion)
        return {
            "exact": float(found == example.reference),
            "copied": float(found is not None and found.partition(" > ")[2] == example.reference.partition(" > ")[2]),
        }

    def reference(self, answer: str) -> str:
        """Returns the line with the total of a right answer. Raises ValueError if there isn't exactly one."""
        line = self.final(answer)
        if line is None:
            raise ValueError(f"its answer has no line $total > name @room, or several: {answer!r}")
        return line

    def final(self, completion: str) -> str | None:
        """Returns the only line of this form; None if there is no such line, or more than one."""
        return demo_steps.parse(completion)
