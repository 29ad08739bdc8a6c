"""Compares two runs: the settings that differ, their scores on the same examples, and the examples that changed most.

    python jobs/diff.py runs/quickstart/sft runs/quickstart/dpo
    python jobs/diff.py base dpo --report runs/eval

The scores come from an evaluation that measured both runs (jobs/eval.py).
"""

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    """Returns 0 after the comparison. Exits with 2 if a run or report is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", help="a run, or its name in the report")
    parser.add_argument("b", help="the run to compare with it")
    parser.add_argument("--report", help="run of the evaluation (default: the newest beside the runs that covers both)")
    parser.add_argument("--examples", type=int, default=10, help="how many changed examples to show (default: 10)")
    options = parser.parse_args(argv)
    if options.examples < 0:
        parser.error(f"--examples: must be 0 or more, is {options.examples}")
    from lib.runtime.refusing import refusing

    with refusing("jobs/diff.py"):
        return _main(options)


def _main(options) -> int:
    from lib.evals.report import diff
    from lib.evals.report.render import comparison_lines
    from lib.evals.report.schema import Report
    from lib.run import Run
    from lib.runtime.console import show

    if options.report:
        where = Run(options.report)
        if not where.fs.exists(where.at("reports/report.json")):
            raise ValueError(f"--report: {where.path} has no reports/report.json.")
        report = Report.from_json(where.read_text("reports/report.json"))
    else:
        where, report = diff.find_report(Run(options.a).path, Run(options.b).path)
    names = [diff.name_of(x, report) for x in (options.a, options.b)]
    runs = [Run(next(r.path for r in report.runs if r.name == name)) for name in names]
    rows = [(key, f"{a}  →  {b}") for key, a, b in diff.settings(*runs)]
    show(rows, f"{names[0]} → {names[1]}: settings that differ")
    compared, changes = diff.compare(where, report, *names)
    print()
    show(comparison_lines(compared), f"scores on the same examples, from {where.path}")
    for c in changes[: options.examples]:
        print(f"\n{c.task} {c.id} ({c.decoding}): {c.question}")
        for name, answer, scores in zip(names, c.answers, c.scores, strict=True):
            print(f"  {name:<8} {answer!r}\n  {'':<8} {', '.join(f'{k} {v}' for k, v in scores.items())}")
    print(f"\n{len(changes)} examples were scored differently; {min(len(changes), options.examples)} are shown.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
