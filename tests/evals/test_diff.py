"""A diff of two runs on hand-written examples: those of one group count as one."""

import json

from lib.evals.report import diff
from lib.evals.report.schema import Metric
from lib.run import Run
from tests.evals import handwritten


def test_examples_of_a_group_are_drawn_together(tmp_path):
    report, rows = handwritten.report(), []
    report.metrics.append(Metric("asked", "right", "sft", 0.0, 0.0, 0.1, 40, "Wilson", kind="proportion"))
    for i in range(40):  # 4 questions in 10 wordings each; b is right on two of the questions, a on none
        for run, right in (("sft", 0.0), ("dpo", float(i // 10 < 2))):
            rows.append({"task": "asked", "decoding": "greedy", "id": f"q{i}", "group": f"g{i // 10}", "run": run,
                         "prompt": [{"role": "user", "content": "?"}], "answer": "!", "scores": {"right": right}})  # fmt: skip
    where = Run(str(tmp_path))
    found = {}
    for name, grouped in (("together", True), ("apart", False)):
        lines = [row if grouped else {k: v for k, v in row.items() if k != "group"} for row in rows]
        where.write_text("reports/examples.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        (found[name],) = diff.compare(where, report, "sft", "dpo")[0]
    assert found["together"].difference == found["apart"].difference == 0.5
    # Two of four questions are no evidence, twenty of forty would be.
    assert found["apart"].p < 1e-4 < 0.2 < found["together"].p
