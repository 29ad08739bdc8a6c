"""Code tasks: right answers pass, wrong ones don't, and a program can't escape, hang, or pass by exiting early."""

import json
import sys
import time
from pathlib import Path

import pytest

from lib.evals import registry
from lib.evals.tasks import sandbox
from lib.evals.tasks.code import extract

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'from typing import List\n\n\ndef helper(x: int) -> int:\n    return x + 1\n\n\ndef add_all(xs: List[int]) -> int:\n    """ Sum of each x plus one. """\n',
    "entry_point": "add_all",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 5\n    assert candidate([]) == 0\n",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function that doubles a number.",
    "test_list": ["assert double(2) == 4", "assert math.isclose(double(.5), 1)"],
    "test_setup_code": "import math",
}


@pytest.fixture
def task(tmp_path):
    def make(name: str, row: dict):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(row) + "\n")
        return registry.task(name, str(path))

    return make


@pytest.mark.parametrize(
    ("name", "answer", "passed"),
    [
        (
            "humaneval",
            "Here:\n```python\ndef add_all(xs: List[int]) -> int:\n    return sum(helper(x) for x in xs)\n```\nDone.",
            1,
        ),
        ("humaneval", "    return sum(x + 1 for x in xs)\n", 1),  # only the body, as a base model continues
        ("humaneval", "```\ndef add_all(xs):\n    return sum(xs)\n```", 0),
        (
            "humaneval",
            "```python\nprint('hi')\n```\nand\n```python\ndef add_all(xs):\n    return sum(xs) + len(xs)",
            1,
        ),  # truncated
        ("humaneval", "```python3\ndef add_all(xs):\n    return sum(xs) + len(xs)\n```\nThis works.", 1),
        (
            "humaneval",
            "```bash\npip install x\n```\nThen:\n```python\ndef add_all(xs):\n    return sum(xs) + len(xs)\n```",
            1,
        ),
        ("humaneval", "I can't do that.", 0),
        ("humaneval", "", 0),
        ("mbpp", "```python\ndef double(x):\n    return 2 * x\n```", 1),
        ("mbpp", "def double(x): return x ** 2", 0),
        ("mbpp", "def dbl(x): pass", 0),
    ],
)
def test_answers(task, name, answer, passed):
    t = task(name, {"humaneval": HUMANEVAL, "mbpp": MBPP}[name])
    (example,) = t.examples()
    assert t.score(example, answer) == {"pass@1": passed}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"task_id": 1, "prompt": "def f():"}, r"task_data.humaneval: .* has no entry_point and no test"),
        ({"task_id": 1, "test_list": []}, r"task_data.mbpp: .* has no text"),
    ],
)
def test_rows_that_lack_something(task, row, message):
    with pytest.raises(ValueError, match=message):
        task("humaneval" if "prompt" in row else "mbpp", row).examples()


def test_extract_takes_the_block_that_defines_the_function():
    assert extract("```python\na = 1\n```\n```python\ndef f(): pass\n```", "f") == "def f(): pass\n"
    assert extract("```py\na = 1\n```", "f") == "a = 1\n" and extract("a = 2", "f") == "a = 2"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import socket; socket.create_connection(('127.0.0.1', 22), 2)", "refused|unreachable"),
        ("import socket; socket.create_connection(('1.1.1.1', 80), 2)", "unreachable"),
        ("open('/usr/x', 'w')", "Read-only"),
        ("open('/etc/passwd')", "No such file"),
        ("open('/tmp/x', 'wb').write(bytes(64 << 20))", "File too large|No space"),
        ("[open(f'/tmp/{i}', 'wb').write(bytes(8 << 20)) for i in range(9)]", "No space"),
        ("x = bytearray(4 << 30)", "MemoryError"),
        ("open('/x', 'w')", "Read-only"),
        ("open('/dev/shm/x', 'w')", "Read-only|No such file"),
        ("import os\nwhile True: os.write(2, bytes(65536))", ""),
        ("while True: pass", "took more than 5 s"),
        ("import os; os.fork()", "temporarily unavailable"),
        ("import subprocess; subprocess.run(['/bin/true'])", "temporarily unavailable"),
        ("import threading; threading.Thread(target=print).start()", "can't start new thread"),
        ("import sys; sys.exit(0)", "ended early"),
        ("import os; os._exit(0)", "ended early"),
        ("def f(:", "SyntaxError"),
        ("\ud800", ""),
    ],
)
def test_what_a_program_cannot_do(source, why):
    import re

    found = sandbox.run(source)
    assert not found.passed and re.search(why, found.why), found


def test_it_sees_nothing_of_the_user(monkeypatch):
    """Not the environment, this repository, /etc, other files in the home folder, or the calling process."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    mine = [str(p) for p in Path.home().iterdir() if not sys.base_prefix.startswith(str(p))]
    source = f"import os\nassert 'OPENAI_API_KEY' not in os.environ and not os.listdir('/tmp')\nfor p in {[*mine, __file__, '/etc']!r}:\n"
    source += "    assert not os.path.exists(p), p\n"
    source += "os.kill(os.getppid(), 9)  # the namespace's first process, which it can't\n"
    source += "assert len([p for p in os.listdir('/proc') if p.isdigit()]) == 2"
    assert sandbox.run(source) == sandbox.Outcome(True, "")


def test_sleeping_programs_end(monkeypatch):
    monkeypatch.setattr(sandbox, "WALL_SECONDS", 1)
    began = time.time()
    assert sandbox.run("import time; time.sleep(60)").why == "took more than 1 s"
    assert time.time() - began < 60  # before the program would have ended


def test_without_bubblewrap_nothing_is_run(task, monkeypatch):
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    sandbox.problem.cache_clear()
    with pytest.raises(ValueError, match=r"tasks: humaneval runs code .*apt-get install bubblewrap"):
        task("humaneval", HUMANEVAL).examples()
    sandbox.problem.cache_clear()
