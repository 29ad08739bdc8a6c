"""The release gate: conditions that the report's metrics must meet; otherwise jobs/eval.py exits with status 1."""

from __future__ import annotations

from dataclasses import dataclass

from lib.evals.report.formatting import number, show
from lib.evals.report.schema import Metric, Report, Verdict


@dataclass
class Rule:
    """One condition, with exactly one of at_least, at_most and not_worse_than."""

    metric: str
    """The metric as task.metric, such as demo.exact or xstest.over_refusal; a task alone means its first metric."""
    run: str
    """The run to check, by its name in runs."""
    at_least: float | None = None
    """Minimum value. The measured value is compared; its interval is only shown."""
    at_most: float | None = None
    """Maximum value."""
    not_worse_than: str | None = None
    """Name of another run: the gate fails if this run is significantly worse (Holm-corrected p below 0.05)."""
    decoding: str | None = None
    """The decoding to check if there are several. None: the first."""


def problems(rules: list[Rule], tasks: dict[str, list[str] | None], runs: list[str], decodings: list[str]) -> list[str]:
    """Returns the problems with the rules, before anything is measured. tasks: {name: its metrics, or None if not known yet}."""
    from lib.errors import nearest

    out = []
    for i, r in enumerate(rules):
        key, (task, _, metric) = f"gate[{i}]", r.metric.partition(".")
        if task not in tasks:
            out.append(f"{key}.metric: {r.metric}: {task} is not one of tasks.{nearest(task, tasks)}")
        elif metric and (there := tasks[task]) and metric not in there:
            out.append(f"{key}.metric: {task} has no {metric}.{nearest(metric, there)} It has {', '.join(there)}.")
        for name in [r.run] + ([r.not_worse_than] if r.not_worse_than else []):
            if name not in runs:
                out.append(f"{key}: {name} is not one of runs ({', '.join(runs)}).{nearest(name, runs)}")
        if sum(x is not None for x in (r.at_least, r.at_most, r.not_worse_than)) != 1:
            out.append(f"{key}: give exactly one of at_least, at_most and not_worse_than.")
        if r.decoding is not None and r.decoding not in decodings:
            out.append(f"{key}.decoding: {r.decoding} is not one of decoding.{nearest(r.decoding, decodings)}")
    return out


def judge(rules: list[Rule], report: Report) -> list[Verdict]:
    """Returns one verdict per rule. Raises ValueError for a metric that the report lacks."""
    return [_judge(rule, report) for rule in rules]


def _judge(r: Rule, report: Report) -> Verdict:
    m = _metric(r, report)
    name = f"{m.task}.{m.metric} of {r.run}" + (f" ({m.decoding})" if m.decoding not in ("", "greedy") else "")
    if r.not_worse_than is not None:
        c = next(
            c
            for c in report.comparisons
            if (c.task, c.metric, c.decoding, c.judge) == (m.task, m.metric, m.decoding, m.judge)
            and {c.a, c.b} == {r.run, r.not_worse_than}
        )
        gain = c.difference * (1 if c.b == r.run else -1) * (-1 if c.better == "lower" else 1)
        worse = gain < 0 and c.p_holm < 0.05
        evidence = f"{show(m)}, n={m.n}, p = {c.p_holm:.3f} (Holm)"
        return Verdict(f"gate: {name} is not worse than {r.not_worse_than}", not worse, show(m), evidence, m.n)
    bar, sign = (r.at_least, "≥") if r.at_least is not None else (r.at_most, "≤")
    holds = m.value >= bar if sign == "≥" else m.value <= bar
    return Verdict(f"gate: {name} {sign} {number(bar)}", holds, show(m), f"{show(m)}, n={m.n}", m.n)


def _metric(r: Rule, report: Report) -> Metric:
    from lib.errors import nearest

    task, _, metric = r.metric.partition(".")
    there = [m for m in report.metrics if (m.task, m.run) == (task, r.run) and r.decoding in (None, m.decoding)]
    there.sort(key=lambda m: m.judge is not None)  # metrics by rule take precedence over metrics by judge
    found = next((m for m in there if m.metric == metric or not metric), None)
    if found is None:
        names = list(dict.fromkeys(m.metric for m in report.metrics if m.task == task))
        raise ValueError(
            f"gate: {r.metric}: {task} has no metric {metric} for {r.run}.{nearest(metric, names)} It has {', '.join(names)}."
        )
    return found
