"""The page of a run that learns from rewards: warnings first, a figure for each metric, and nothing that it loads."""

import json
import re
from types import SimpleNamespace
from xml.etree import ElementTree as ET

from lib.methods.rl import page, warnings
from lib.run import Run
from tests.methods import learning

HACKED = learning.rows(**learning.FAULTS["hacking"])


def job(rewards=None, **train):
    rewards = {"length": 1.0, "demo": 0.0} if rewards is None else rewards
    return SimpleNamespace(stage="grpo", model=SimpleNamespace(base="<b>base</b>"), rewards=rewards, train=train)


def text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<(style|svg).*?</\1>|<[^>]+>", " ", html, flags=re.S))


def test_warnings_come_first_with_their_evidence_and_each_metric_has_a_figure():
    found = warnings.find(HACKED, ["demo"])
    html = page.html("runs/x", job(), HACKED, found)
    assert found[0].text in text(html) and html.index("! hacking") < html.index("<svg")
    assert "held-out demo: 0.6 [" in text(html) and "in step 0; 0.2 [" in text(html)
    figures = re.findall(r"<figure.*?</figure>", html, re.S)
    titles = [re.search("<h3>(.*?)</h3>", f)[1] for f in figures]
    assert titles == [
        "Reward", "length", "demo", "Entropy", "KL to the reference", "KL to the reference", "Length", "Cut off", "Distinct-2",
        "Groups without spread", "Clip fraction",
    ]  # fmt: skip
    assert "measured only: held-out, greedy 0.6 → 0.2" in text(figures[2])
    for figure in figures:
        ET.fromstring(re.search("<svg.*?</svg>", figure, re.S)[0].replace("xlink:href", "href"))


def test_the_page_loads_nothing_and_escapes_names():
    html = page.html("runs/<i>", job(), HACKED, [])
    assert not re.search(r'(?:src|href)="(?!#|data:)', html) and "<script" not in html
    assert "<i>" not in html and "<b>base" not in html and "&lt;b&gt;base" in html


def test_the_page_says_what_the_run_cannot_be_warned_of():
    rows = [{k: v for k, v in row.items() if k != "kl"} for row in learning.rows(6)]
    html = text(page.html("runs/x", job({"length": 1.0}), rows, []))
    assert "Warnings None." in html and "Fewer than 10 steps are logged" in html
    assert "Hacking: nothing but the rewards is measured" in html and "without train.beta" in html
    once = [row for row in HACKED if row["step"] or "reward" in row][:61]
    assert page.unseen(job(kl_limit=2.0), once) == [
        "Hacking: held-out answers were measured only once. Set train.eval_strategy and train.eval_steps."
    ]
    assert page.unseen(job(kl_limit=2.0), HACKED) == []
    assert [s.split(":")[0] for s in page.unseen(job(), HACKED)] == ["KL"]


def test_an_empty_log_makes_a_page():
    assert "0 steps" in page.html("runs/x", job(), [], [])


def test_measures_are_what_is_not_trained_on_and_has_a_better_side():
    assert page.measures(job({"demo": 1.0, "demo.slots": 0.0, "length": 0.0, "run:runs/reward": 0.0})) == [
        "demo.slots", "run:runs/reward",
    ]  # fmt: skip


def test_the_limit_of_the_divergence_is_the_key_or_twice_its_target():
    assert page.kl_limit({}) is None and page.kl_limit({"kl_target": 6.0}) == 12.0
    assert page.kl_limit({"kl_target": 6.0, "kl_limit": 7.0}) == 7.0


def test_a_finished_job_writes_the_page_and_records_and_prints_the_warnings(tmp_path, capsys):
    from lib.stage import closing

    run = Run(tmp_path / "run")
    run.write_text("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in HACKED))
    run.write_json("provenance.json", {"status": "finished"})
    closing.warn(run, job())
    assert "! hacking" in run.read_text("reports/rl.html")
    said = run.provenance()
    assert said["status"] == "finished" and [w["name"] for w in said["rl_warnings"]] == ["hacking"]
    assert said["rl_warnings"][0]["evidence"][3] | {"interval": 0} == {
        "measure": "held-out demo", "steps": [60, 60], "mean": 0.2, "interval": 0,
    }  # fmt: skip
    out = capsys.readouterr().out
    assert "Warning, hacking: The reward rises while demo of held-out answers falls" in out
    assert f"Curves and warnings: {run.at('reports/rl.html')}" in out
