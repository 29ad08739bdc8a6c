"""A hand-written report, written as JSON and rendered."""

import html
import json
import re

import pytest
from jsonschema import validate

from lib.evals.report import panels, render
from lib.evals.report.schema import Report, Verdict, flatten, schema
from lib.evals.task import Scores
from lib.run import Run
from tests.evals import handwritten


@pytest.fixture(scope="module")
def report() -> Report:
    return handwritten.report()


@pytest.fixture(scope="module")
def page(report) -> str:
    return render.html(report)


def test_json_round_trip_and_schema(report):
    text = report.to_json()
    assert Report.from_json(text) == report
    validate(json.loads(text), schema())


def test_another_schema_is_refused(report):
    with pytest.raises(ValueError, match="schema 99"):
        Report.from_json(report.to_json().replace('"schema": 1', '"schema": 99'))


def test_nan_never_reaches_the_json(report):
    broken = Report.from_json(report.to_json())
    broken.metrics[0].value = float("nan")
    with pytest.raises(ValueError, match=r"[Oo]ut of range|JSON compliant"):
        broken.to_json()


def test_the_page_asks_for_nothing_else(page):
    """No element or style loads anything: only anchors within the page, and the empty data: icon."""
    assert set(re.findall(r'(?:href|src)="([^"#]*)', page)) <= {"", "data:,"}
    assert not re.search(r"@import|url\((?!#)|<script|<img|<iframe|<link(?! rel=\"icon\")", page)


def test_why_there_is_no_interval_is_said(report, capsys):
    """In the page, the text and the terminal, for scores and differences; a value of the whole run has no such line."""
    few = Report.from_json(report.to_json())
    reason = "no interval: 3 of 200 values differ from the most common one, 5 are needed"
    for x in (next(m for m in few.metrics if m.metric == "kl"), few.comparisons[0]):
        x.low = x.high = None
        x.method = reason
    lines = [f"KL from sft of dpo has {reason}.", f"demo: exact, base → sft, has {reason}."]
    assert render.without(few) == lines and render.without(report) == []
    render.terminal(few, "here")
    for text in (html.unescape(render.html(few)), render.markdown(few), " ".join(capsys.readouterr().out.split())):
        assert all(line in text for line in lines)


def test_the_page_holds_what_was_measured(report, page):
    for v in report.verdicts:
        assert v.figure in page and v.claim in page
    for m in report.metrics:
        assert render.show(m).split(" [")[0] in page
    for text in (
        *report.commands,
        *report.next,
        *report.warnings,
        report.samples_note,
        "train.learning_rate",
        "2 CPU cores",
    ):
        assert text in page
    assert page.count("<svg") == len(panels.scores(report)) + len(panels.losses(report)) + 2 == 5 + 3 + 2


def test_answers_cannot_inject_markup(page):
    assert "&lt;b&gt;happy&lt;/b&gt;" in page and "<b>happy" not in page and "&lt;Noor&gt; &amp; co" in page


def test_pictures_follow_the_pages_colours(page):
    svg = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.S))
    assert "var(--run-0)" in svg and "var(--ink)" in svg
    assert not re.findall(r"#(?:01|02|03|05)[0-9a-f]{4}", svg)  # all placeholder colours are replaced


def test_settings_that_differ_are_tinted(report, page):
    assert render.changed(report.runs[1], report) == {"train.learning_rate"}
    assert '<tr class="differs"><td>train.learning_rate</td><td><code>0.001</code></td></tr>' in page


def test_the_best_of_a_row_is_marked(report):
    rows = {r["label"]: r for r in render.table(report)}
    assert rows["perplexity"]["best"] == "sft"  # lower is better
    assert rows["demo: length in tokens"]["best"] is None  # neither direction is better
    assert rows["win rate over sft, judge: rule"]["best"] is None  # nothing to compare with


def test_markdown(report):
    text = render.markdown(report)
    assert "| | base | sft | reward | dpo | n |" in text
    assert re.search(r"- ✔ \*\*sft is above base on demo, exact\*\*: [\d.]+% \[\d–\d+\] → [\d.]+%", text)
    assert handwritten.LINE in text and "python jobs/eval.py --config configs/eval.yaml" in text


def test_terminal(report, capsys):
    render.terminal(report, "/somewhere/reports")
    out = capsys.readouterr().out
    assert "sft is above base on demo, exact" in out and "/somewhere/reports/report.html" in out
    assert all(c in out for c in report.next)


def test_a_report_without_runs_or_samples(report):
    """Only a reward run: no answers, no comparisons."""
    alone = Report.from_json(report.to_json())
    alone.runs = [r for r in alone.runs if r.name == "reward"]
    alone.metrics = [m for m in alone.metrics if m.run == "reward"]
    alone.comparisons, alone.samples, alone.samples_note, alone.commands, alone.warnings = [], [], "", [], []
    alone.failures, alone.calibrations = [], []
    page = render.html(alone)
    assert 'id="answers"' not in page and "pairs right" in page and "Differences" not in page


def test_write_puts_everything_in_reports(report, tmp_path):
    run = Run(str(tmp_path / "run"))
    render.write(report, run, '{"id": 1}\n')
    assert set(run.files("reports")) == {"report.json", "report.md", "report.html", "examples.jsonl"}


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_badges_say_worse_only_of_a_run_that_is_worse():
    of = lambda holds, compares: render.badge(Verdict("", holds, "", "", 9, compares))  # noqa: E731
    assert [of(True, True), of(False, True), of(None, True)] == ["better", "worse", "can’t tell"]
    assert [of(True, False), of(False, False)] == ["holds", "missed"]


def test_a_floor_or_ceiling_that_is_missed_is_not_worse():
    from lib.evals.report import summary

    ids = [f"{i}" for i in range(200)]
    scores = [
        Scores("preference_accuracy", "preference_accuracy", "reward", ids, [1.0, 0.0] * 100, kind="proportion"),
        Scores("kl", "kl", "dpo", ids, [9.0, 8.0] * 100, better="lower", versus="sft"),
        Scores("win_rate", "win_rate", "dpo", ids, [0.0] * 200, kind="proportion", versus="sft", judge="rule"),
    ]
    found = summary.verdicts(["sft", "dpo"], [summary.metric(s, 0) for s in scores], [], 0.65, 5.0)
    assert [render.badge(v) for v in found] == ["missed", "missed", "worse"]


def test_chance_stands_beside_scores(report, page):
    rows = {r["label"]: r["chance"] for r in render.table(report)}
    assert rows["win rate over sft, judge: rule"] == "chance 50%" and rows["perplexity"] == ""
    assert '<span class="ends">chance 50%</span>' in page and "dashed: chance, 50%" in page
    assert "(chance 50%)" in render.markdown(report)


def test_a_judge_is_not_called_a_reward_model(report):
    judged = Report.from_json(report.to_json())
    judged.metrics = [m for m in judged.metrics if m.metric == "preference_accuracy"]
    judged.metrics[0].run = "referee"
    (row,) = render.table(judged)
    assert row["label"] == "preference pairs right"
