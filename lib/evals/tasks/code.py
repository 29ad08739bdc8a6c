"""Code generation, scored by running tests in a sandbox (lib/evals/tasks/sandbox.py); one answer per problem: pass@1.

HumanEval (Chen et al. 2021, https://arxiv.org/abs/2107.03374), a row of its JSONL:

    {"task_id": "HumanEval/0", "prompt": "def f(…):\\n    \\"\\"\\"…", "entry_point": "f", "test": "def check(candidate): …"}

MBPP (Austin et al. 2021, https://arxiv.org/abs/2108.07732):

    {"task_id": 11, "text": "Write a function …", "test_list": ["assert f(1) == 2", …], "test_setup_code": ""}
"""

from __future__ import annotations

import re
from typing import ClassVar

from lib.evals.task import Example, Statistic
from lib.evals.tasks import sandbox
from lib.evals.tasks.task_rows import read

BLOCK = re.compile(r"```([^\n`]*)\n(.*?)(?:```|\Z)", re.DOTALL)


class _Code:
    """Base class of HumanEval and MBPP: an answer is a program that passes its tests or fails."""

    version = "1"
    metrics: ClassVar = {"pass@1": Statistic()}
    at_once = 4
    """Number of answers scored at the same time, each in its own process."""

    def __init__(self, address: str | None = None):
        self.address = address

    def score(self, example: Example, completion: str) -> dict[str, float]:
        """Returns pass@1: 1 if the tests pass, otherwise 0."""
        return {"pass@1": float(sandbox.run(self.program(example, completion)).passed)}

    def _rows(self, hub: tuple[str, str | None, str], columns: tuple[str, ...], limit: int | None) -> list:
        if why := sandbox.problem():
            raise ValueError(f"tasks: {self.name} {why}")
        return read(self.name, self.address, hub, columns, limit)


class HumanEval(_Code):
    name = "humaneval"

    def examples(self, limit: int | None = None) -> list[Example]:
        """Returns the examples. Raises ValueError for a missing column, and if code can't be run safely here."""
        hub = ("openai/openai_humaneval", None, "test")
        rows = self._rows(hub, ("task_id", "prompt", "entry_point", "test"), limit)
        ask = "Complete this Python function. Answer with the whole function in one code block."
        return [
            Example(
                f"humaneval-{r['task_id']}",
                [{"role": "user", "content": f"{ask}\n\n```python\n{r['prompt'].rstrip()}\n```"}],
                {k: r[k] for k in ("prompt", "entry_point", "test")},
            )
            for _, r in rows
        ]

    def program(self, example: Example, completion: str) -> str:
        """Returns the program: the prompt's imports and helpers, the answer (or the prompt's function with the answer as its
        body), and the tests."""
        r, code = example.reference, extract(completion, example.reference["entry_point"])
        head = r["prompt"]
        if defines(code, r["entry_point"]):
            head = head[: re.search(rf"^def {re.escape(r['entry_point'])}\b", head, re.MULTILINE).start()]
        return f"{head}{code}\n\n{r['test']}\n\ncheck({r['entry_point']})\n"


class Mbpp(_Code):
    name = "mbpp"

    def examples(self, limit: int | None = None) -> list[Example]:
        """Returns the examples. Raises ValueError for a missing column, and if code can't be run safely here."""
        hub = ("google-research-datasets/mbpp", None, "test")
        out = []
        for place, r in self._rows(hub, ("task_id", "test_list"), limit):
            if not (text := r.get("text") or r.get("prompt")):
                raise ValueError(f"task_data.mbpp: {place} has no text (or prompt); its columns are {', '.join(r)}.")
            ask = "Answer with one Python code block. It must pass these tests:"
            prompt = f"{text}\n\n{ask}\n\n```python\n" + "\n".join(r["test_list"]) + "\n```"
            setup = "\n".join(r.get("test_imports") or []) or r.get("test_setup_code") or ""
            reference = {"setup": setup, "tests": list(r["test_list"])}
            out.append(Example(f"mbpp-{r['task_id']}", [{"role": "user", "content": prompt}], reference))
        return out

    def program(self, example: Example, completion: str) -> str:
        """Returns the program: the answer, the setup and the tests."""
        return "\n\n".join([extract(completion), example.reference["setup"], *example.reference["tests"]]) + "\n"


def extract(completion: str, name: str | None = None) -> str:
    """Returns an answer's code: the last Python block that defines `name`, else the first block, else the whole text."""
    found = [(tag.strip().lower(), code) for tag, code in BLOCK.findall(completion)]
    blocks = [code for tag, code in found if not tag or tag.startswith("py")] or [code for _, code in found]
    defining = [b for b in blocks if name and defines(b, name)]
    return (defining or blocks[:1] or [completion])[-1]


def defines(code: str, name: str) -> bool:
    return bool(re.search(rf"^(?:async )?def {re.escape(name)}\b", code, re.MULTILINE))
