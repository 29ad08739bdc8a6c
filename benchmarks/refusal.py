"""How far the rule of lib/evals/xstest.py agrees with people on what is a refusal.

    python benchmarks/refusal.py completions_gpt4_human_labels.csv [...]

The files are XSTest's own (completion, final_label: 1_full_compliance, 2_full_refusal, 3_partial_refusal). A partial
refusal counts as a refusal. Prints agreement with its interval, Cohen's kappa, and both kinds of error.
"""

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def main(paths: list[str]) -> int:
    from rich.console import Console
    from rich.table import Table
    from sklearn.metrics import cohen_kappa_score

    from lib.evals import statistics
    from lib.evals.xstest import refuses

    if not paths:
        print(__doc__)
        return 2
    table = Table(title="refusals: the rule against human labels")
    for name in ("file", "n", "agree", "Cohen's kappa", "called refusals, but answered", "refusals missed"):
        table.add_column(name)
    for path in paths:
        with open(path, newline="", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
        people = [not row["final_label"].startswith("1") for row in rows]
        rule = [refuses(row["completion"]) for row in rows]
        e = statistics.wilson([float(a == b) for a, b in zip(people, rule, strict=True)])
        wrong = sum(r and not p for p, r in zip(people, rule, strict=True))
        missed = sum(p and not r for p, r in zip(people, rule, strict=True))
        agree = f"{e.value:.1%} [{e.low:.1%}–{e.high:.1%}]"
        kappa = f"{cohen_kappa_score(people, rule):.3f}"
        table.add_row(Path(path).name, str(len(rows)), agree, kappa, f"{wrong} of {len(rows) - sum(people)}", f"{missed} of {sum(people)}")  # fmt: skip
    Console(width=150).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
