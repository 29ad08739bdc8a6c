"""report.html of a search, its Pareto front and what random search would have given."""

import itertools
import json
import math
import re
import subprocess
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pytest

from lib.run import Run
from tests.tune import searches
from tune import page, random_search, report, space
from tune.journal import Trial
from tune.ranking import pareto, ranked

S = searches.settings()


@pytest.fixture(scope="module")
def made():
    trials = searches.trials()
    return trials, searches.report(trials, S)


@pytest.fixture(scope="module")
def html(made):
    return page.html(made[1])


def _rows(html: str, heading: str) -> list[str]:
    """The rows of the first table below a heading, without its head."""
    table = html[html.index(heading) :].split("</table>")[0]
    return re.findall(r"<tr.*?</tr>", table, re.S)[1:]


def test_each_trial_has_a_row_with_its_numbers(made, html):
    trials, _ = made
    rows = [re.sub(r"<[^>]+>", "|", row) for row in _rows(html, 'id="trials"')]
    assert len(rows) == 21
    for t in (t for t in trials if t.role != "confirm"):
        (row,) = [r for r in rows if re.search(rf"^\|+{'start' if t.role == 'start' else t.number}[ |]", r)]
        assert f"|{t.status}|" in row and f"|{t.seconds:.1f}|" in row and f"|{t.tokens:,}|" in row
        assert f"|{page.number(t.last('eval_loss'))}|" in row and f"|${t.seconds / 3600 * 1.2:.4f}|" in row
        assert all(
            f"|{page.text(v)}|".replace("<b>", "&lt;b&gt;").replace("</b>", "&lt;/b&gt;") in row
            for v in t.settings.values()
        )
    again = _rows(html, "<summary>runs of the confirmation")
    assert len(again) == 9 and sum('class="left">start<' in row for row in again) == 3
    assert "|NaN|" in rows[-2] and "CUDA out of memory" in rows[-1]


def test_text_from_the_search_is_escaped(html):
    assert "<b>" not in html and "&lt;b&gt;dora&lt;/b&gt;" in html


def test_the_page_is_self_contained_and_its_figures_are_well_formed(html):
    figures = re.findall(r"<svg.*?</svg>", html, re.S)
    assert len(figures) == 6
    for svg in figures:
        ET.fromstring(svg.replace("xlink:href", "href"))
    assert "7: nan at step 30" in figures[0]  # diverged: its curve ends before
    assert not re.search(r'(?:src|href)="(?!#|data:|https://arxiv)', html) and "<script" not in html
    assert not re.search("#0[56]0[56]", html)  # every placeholder colour is a variable


def test_verdict_figures_confirmation_and_commands(made, html):
    _, content = made
    assert html.index(content["verdict"][0]) < html.index("<svg")
    assert len(_rows(html, 'id="confirmed"')) == len(content["confirmed"]) == 2
    assert "[+0.1840, +0.2394]" in html
    assert "python jobs/sft.py --config &#39;/runs/a search/best.yaml&#39;" in html
    assert "python -m tune --config x.yaml" in html
    best = ranked([t for t in made[0] if t.status == "stopped"], "eval_loss", "min")[0]
    assert f"python jobs/sft.py --resume &#39;/runs/a search/trials/{best.number:04d}&#39;" in html
    assert f"With 8 trials, random search is expected to reach eval_loss {_expected(made[0]):.4f}" in html


def _expected(trials):
    """Of the first 10 trials, the one that failed and the one that diverged have no value."""
    values = [t.last("eval_loss") for t in trials[1:11] if t.number not in (4, 7)]
    return random_search.expected_best(values, "min")[-1]


def test_small_and_empty_searches_say_what_is_missing():
    s = searches.settings(search="grid", usd_per_hour=0.0)
    few = searches.trials(8)[:3]
    html = page.html(searches.report(few, s))
    assert "A grid draws nothing at random" in html and "importance needs 8" in html and "<th>cost</th>" not in html
    start = Trial(0, {}, "start", status="failed", why="no GPU")
    html = page.html(searches.report([start], S) | {"verdict": []})
    assert "No trial finished" in html and "No trial has reported eval_loss." in html and "<svg" not in html
    diverged = searches.trials(8)[:3]
    for t in diverged:
        t.reports[-1] = t.reports[-1] | {"eval_loss": math.nan}
    page.html(searches.report(diverged, S))
    page.html(searches.report([], S))


@pytest.mark.parametrize(
    "value", ["$x_1$ and $", r"\d{2} \1", 'a "quoted" & <tagged>', None, True, [1, 2], "long " * 30]
)
def test_any_listed_value_can_be_drawn(value):
    tree = {"train.optim": {"choice": [value, "other"]}, "data.optim": {"loguniform": [1e-3, 1.0]}}
    trials = [
        Trial(n, {"train.optim": v, "data.optim": 0.1}, "search", status="finished",
              reports=[{"step": 5, "eval_loss": 2.0 + n, "seconds": 1.0}])
        for n, v in enumerate([value, "other"])
    ]  # fmt: skip
    html = page.html(searches.report(trials, searches.settings(space=tree)))
    assert "train.optim" in html and "data.optim" not in _rows(html, 'id="trials"')[0]
    for svg in re.findall(r"<svg.*?</svg>", html, re.S):
        ET.fromstring(svg.replace("xlink:href", "href"))


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_expected_best_is_the_mean_over_all_ordered_draws(mode):
    values = [2.0, 1.5, 3.25, 1.5]
    pick = {"min": min, "max": max}[mode]
    found = random_search.expected_best(values, mode)
    for k in range(1, 5):
        draws = [pick(draw) for draw in itertools.product(values, repeat=k)]
        assert math.isclose(found[k - 1], sum(draws) / len(draws))
    assert random_search.expected_best([], mode) == []


def test_which_trials_were_drawn_at_random():
    trials = searches.trials()
    drawn = {
        kind: [t.number for t in random_search.drawn_at_random(trials, searches.settings(search=kind))]
        for kind in ("random", "optuna", "grid")
    }
    assert drawn == {"random": list(range(1, 21)), "optuna": list(range(1, 11)), "grid": []}


def test_the_best_so_far():
    values = [None, 3.0, math.nan, 2.0, 2.5]
    trials = [
        Trial(n, {}, "search", status="finished", reports=[] if v is None else [{"step": 1, "acc": v}])
        for n, v in enumerate(values)
    ]
    assert random_search.best_so_far(trials, "acc", "min") == [None, 3.0, 3.0, 2.0, 2.0]
    assert random_search.best_so_far(trials, "acc", "max") == [None, 3.0, 3.0, 3.0, 3.0]
    assert [t.number for t in ranked(trials, "acc", "max")] == [1, 4, 3, 2]  # NaN last


def test_the_pareto_front():
    points = {0: (1.0, 5.0), 1: (2.0, 4.0), 2: (3.0, 4.0), 3: (4.0, 1.0), 4: (4.0, 1.0), 5: (5.0, 2.0), 6: (1.0, 6.0)}
    assert pareto(points, "min") == {0, 1, 3, 4}
    assert pareto(points, "max") == {6}
    assert pareto({}, "min") == set()


def test_report_writes_the_page_from_what_report_json_says(tmp_path, capsys):
    s = searches.settings(run=str(tmp_path))
    found = searches.trials(8)
    planned = SimpleNamespace(settings=s, mode="min", space=space.read(s.space)[0], yaml=lambda t, run: "x: 1\n")
    journal = SimpleNamespace(trials={t.number: t for t in found})
    assert report.write(planned, journal, "all 20 trials have run", "python -m tune --config x.yaml")
    html = (tmp_path / "report.html").read_text()
    content = json.loads((tmp_path / "report.json").read_text())
    assert html == page.html(content)
    assert list(content["search"]["space"]) == list(searches.SPACE)  # `when` names keys above it
    assert content["importance"]["about"].startswith("7 finished or stopped trials")
    assert f"xdg-open {Run(str(tmp_path)).at('report.html')}" in capsys.readouterr().out


@pytest.mark.slow
def test_nothing_is_wider_than_the_screen(browser, html, tmp_path):
    """The width of the page in a browser whose window is 1100 or 360 pixels wide."""
    path = tmp_path / "report.html"
    probe = "<script>document.title = document.documentElement.scrollWidth <= innerWidth ? 'fits' : 'too wide'</script>"
    path.write_text(html.replace("</body>", f"{probe}</body>"), encoding="utf-8")
    for width in (1100, 360):
        flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}")
        done = subprocess.run(
            [browser, *flags, f"--window-size={width},2000", "--dump-dom", path.as_uri()],
            capture_output=True,
            text=True,
        )
        assert "<title>fits</title>" in done.stdout
