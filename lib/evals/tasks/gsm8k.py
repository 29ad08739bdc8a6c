"""GSM8K: math word problems whose answer is one number (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168).

A row of its test.jsonl:

    {"question": "Janet's ducks lay 16 eggs per day. …", "answer": "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 …\\n#### 18"}

Any dataset with these two columns works if each answer ends in "#### number".
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import ClassVar

from lib.evals.task import Example, Statistic
from lib.evals.tasks.task_rows import read

NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
THINK = "Think step by step. End with a line that says #### and then the number."
DIRECT = "Answer with the number alone."


class Gsm8k:
    """Prompts for a chain of thought (Wei et al. 2022) or, with direct, for the number alone."""

    version = "1"
    metrics: ClassVar = {"exact": Statistic(), "strict": Statistic()}

    def __init__(self, address: str | None = None, direct: bool = False):
        self.name, self.address, self.direct = "gsm8k_direct" if direct else "gsm8k", address, direct

    def examples(self, limit: int | None = None) -> list[Example]:
        """Returns the examples. Raises ValueError for a row without a question or without a number after ####."""
        out = []
        hub = ("openai/gsm8k", "main", "test")
        for i, (place, row) in enumerate(read(self.name, self.address, hub, ("question", "answer"), limit)):
            if "####" not in row["answer"]:
                raise ValueError(f"task_data.{self.name}: {place}: answer has no number after ####.")
            try:
                reference = self.reference(row["answer"])
            except ValueError as e:
                raise ValueError(f"task_data.{self.name}: {place}: {e}.") from None
            prompt = f"{row['question']}\n\n{DIRECT if self.direct else THINK}"
            out.append(Example(f"gsm8k-{i}", [{"role": "user", "content": prompt}], reference))
        return out

    def score(self, example: Example, completion: str) -> dict[str, float]:
        """Returns the scores of one answer, each 0 or 1.

        exact: the last number in the answer is right, in any format (lm-eval's flexible-extract).
        strict: the number after #### is right (direct: the answer is that number and nothing else).
        """
        reference = Decimal(example.reference)
        after = completion if self.direct else completion.partition("####")[2]
        strict = NUMBER.fullmatch(after.strip().rstrip(".")) if self.direct else NUMBER.search(after)
        return {
            "exact": float(self.final(completion) == f"{reference.normalize():f}"),
            "strict": float(bool(strict) and number(strict[0]) == reference),
        }

    def reference(self, answer: str) -> str:
        """Returns the number after #### in a right answer, which may also be the number alone. Raises ValueError without one."""
        found = number(answer.rpartition("####")[2])
        if found is None:
            raise ValueError("answer has no number after ####")
        return f"{found:f}"

    def final(self, completion: str) -> str | None:
        """Returns the last number; None if there is none."""
        found = NUMBER.findall(completion)
        last = number(found[-1]) if found else None
        return None if last is None else f"{last:f}"


def number(text: str) -> Decimal | None:
    """Parses a number; 1,234.50 and $1234.5 are equal. Returns None if the text is not a number."""
    try:
        return Decimal(text.strip().replace(",", "").replace("$", "").rstrip(".")).normalize()
    except InvalidOperation:
        return None
