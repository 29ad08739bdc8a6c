"""Searches from start to end on two processes: every way to propose and to stop, every kind of stage, and kills in between."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from lib.run import Run
from lib.runtime import checkpoint, cluster_signals
from tests import warm
from tests.conftest import PATIENCE, REPO, run_job
from tune import plan, settings
from tune.journal import Journal

pytestmark = pytest.mark.slow

JOB = {"scale": {"precision": "fp32", "global_batch": 16, "micro_batch": 16}}
TRAIN = {"max_length": 128, "max_steps": 6, "logging_steps": 1, "lr_scheduler_type": "constant"}


@pytest.fixture
def write(tiny_model, chats_file, tmp_path):
    """write(keys of the search, stage, data, train) → path of its YAML"""

    def make(
        search: dict, stage: str = "sft", data: str = chats_file, train: dict | None = None, base: str = tiny_model
    ) -> str:
        job = JOB | {
            "model": {"base": base},
            "data": {"source": data, "heldout_fraction": 0.3},
            "train": TRAIN | (train or {}),
        }
        (tmp_path / "job.yaml").write_text(json.dumps(job))
        space = {"train.learning_rate": {"loguniform": [1e-4, 1e-1]}, "train.weight_decay": {"choice": [0.0, 0.1]}}
        tree = {"run": str(tmp_path / "search"), "stage": stage, "config": str(tmp_path / "job.yaml"), "space": space}
        tree |= {"every": 2, "confirm": 0, "budget": {"trials": 4}, "concurrent": 2}
        (tmp_path / "search.yaml").write_text(json.dumps(tree | search))
        return str(tmp_path / "search.yaml")

    return make


def start(config: str, *args: str, env: dict | None = None) -> subprocess.Popen:
    clean = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | (env or {})
    command = [warm.python(), "-m", "tune", "--config", config, *args]
    return subprocess.Popen(command, cwd=REPO, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def search(config: str, *args: str, env: dict | None = None) -> tuple[str, dict]:
    """Runs a search. Returns (what it printed, report.json)."""
    process = start(config, *args, env=env)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    return said, Run(json.loads(open(config).read())["run"]).read_json("report.json", "")


def of(report: dict, role: str) -> list[dict]:
    return [t for t in report["trials"] if t["role"] == role]


@pytest.mark.parametrize(
    ("proposals", "scheduler"),
    [("random", "none"), ("grid", "none"), ("optuna", "asha"), ("optuna", "hyperband"), ("random", "median")],
)
def test_a_search_ends_with_its_best_trial(proposals, scheduler, write, local_ray):
    grid = {"train.learning_rate": {"grid": [1e-4, 1e-2]}, "train.weight_decay": {"grid": [0.0, 0.1]}}
    keys = {"search": proposals, "scheduler": scheduler} | (
        {"space": grid, "budget": {"trials": None}} if proposals == "grid" else {}
    )
    said, report = search(write(keys), env=local_ray)
    trials = of(report, "search")
    assert len(trials) == 4 and {t["status"] for t in trials} <= {"finished", "stopped"}, said
    assert [t["settings"] for t in of(report, "start")] == [{}]
    done = [t for t in trials if t["status"] == "finished"]
    assert report["best"] == min(done, key=lambda t: t["value"])["number"]
    for t in report["trials"]:
        run = Run(t["run"])
        steps = [r["step"] for r in t["reports"]]
        assert steps == [2, 4, 6][: len(steps)] and run.is_run()
        if t["status"] == "finished":
            logged = [row["eval_loss"] for row in run.metrics() if "eval_loss" in row]
            assert run.finished() and steps[-1] == 6 and t["value"] == logged[-1]
        else:  # it can go on from where it was stopped
            assert os.path.exists(run.at(f"checkpoints/checkpoint-{steps[-1]}/DONE.json"))


WAYS = [("random", "none"), ("grid", "none"), ("optuna", "asha"), ("optuna", "hyperband"), ("random", "pbt")]


@pytest.mark.parametrize(
    ("stage", "proposals", "scheduler"),
    [
        pytest.param(stage, *way, marks=[] if way == ("optuna", "asha") else pytest.mark.soak)
        for stage in ("dpo", "reward", "distill")
        for way in WAYS
    ],
)
def test_every_kind_of_stage_can_be_searched(
    stage, proposals, scheduler, write, pairs_file, chats_file, tiny_model, local_ray
):
    data, train = (chats_file, {"teacher": tiny_model}) if stage == "distill" else (pairs_file, {})
    kind = "grid" if proposals == "grid" else "choice"
    space = {"train.learning_rate": {kind: [1e-4, 1e-2]}, "train.weight_decay": {kind: [0.1, 0.2]}}
    keys = {"search": proposals, "scheduler": scheduler, "space": space}
    _, report = search(write(keys, stage, data, train), env=local_ray)
    assert len(of(report, "search")) >= 4 and all(t["value"] is not None for t in report["trials"])


@pytest.mark.soak  # tests/tune/test_chain.py has a chain's
def test_a_trial_is_the_job_that_best_yaml_describes(write, local_ray, tmp_path):
    """Also one that ran in a process after other trials: the same bits. And the job is confirmed with other seeds on other rows."""
    said, report = search(
        write({"confirm": 2, "finalists": 1, "concurrent": 1, "budget": {"trials": 2}}), env=local_ray
    )
    best = report["trials"][report["best"]]
    done = run_job("sft", "--config", tmp_path / "search/best.yaml", "--run", tmp_path / "again", env=local_ray)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "again").provenance()["model_sha256"] == Run(best["run"]).provenance()["model_sha256"]
    confirmed = of(report, "confirm")
    assert [(t["of"], t["seed"]) for t in confirmed] == [(0, 1), (report["best"], 1), (0, 2), (report["best"], 2)]
    assert {Run(t["run"]).job()["data"]["heldout_half"] for t in confirmed} == {"second"}
    assert (
        report["confirmed"][0]["trial"] == report["best"] and "the job that the search started from: eval_loss" in said
    )


KILLS = [(3, "driver"), (6, "trial"), (9, "ray"), (12, "driver"), (15, "trial")]
"""(number of events in the journal, what gets SIGKILL then)"""


def test_what_population_based_training_found_trains_to_the_same_bits_from_scratch(write, local_ray, tmp_path):
    """The schedule in best.yaml has every change that the best member's ancestors went through, in their order."""
    space = {"train.learning_rate": {"loguniform": [1e-4, 1e-1]}, "train.weight_decay": {"uniform": [0.01, 0.5]}}
    _, report = search(write({"scheduler": "pbt", "search": "random", "space": space}), env=local_ray)
    trials = of(report, "search")
    assert [t["generation"] for t in trials] == [0] * 4 + [1] * 4 + [2] * 4
    assert [t["status"] for t in trials] == ["stopped"] * 8 + ["finished"] * 4
    assert [[r["step"] for r in t["reports"]] for t in trials] == [[2]] * 4 + [[4]] * 4 + [[6]] * 4
    for t in trials:  # members go on from checkpoints that exist (ray#27170), which stay there (ray#9036)
        if t["parent"] is not None:
            parent = report["trials"][t["parent"]]
            assert checkpoint.damage(Run(parent["run"]), parent["reports"][-1]["step"]) is None
    changed = [t for t in trials if "schedule.learning_rate" in t["settings"]]
    assert changed and report["best"] in [t["number"] for t in trials[8:]]
    for t in (report["trials"][report["best"]], changed[-1]):
        if t["status"] == "finished":
            planned = plan.make(settings.parse(["--config", str(tmp_path / "search.yaml")]).job)
            (tmp_path / "replay.yaml").write_text(
                planned.yaml(planned.before.trials[t["number"]], str(tmp_path / f"replay-{t['number']}"))
            )
            done = run_job("sft", "--config", tmp_path / "replay.yaml", env=local_ray)
            assert done.returncode == 0, done.stderr
            replayed = Run(tmp_path / f"replay-{t['number']}").provenance()
            assert replayed["model_sha256"] == Run(t["run"]).provenance()["model_sha256"]


def test_a_budget_in_dollars_ends_a_search_at_checkpoints_and_a_higher_one_goes_on(write, local_ray, tmp_path):
    """At $1 for a second of a trial. What was cut off goes on, and nothing that has ended is repeated."""
    config = write({"usd_per_hour": 3600, "budget": {"trials": 3, "usd": 0.2}, "concurrent": 1, "search": "random"})
    process = start(config, env=local_ray)
    said, _ = process.communicate(timeout=PATIENCE)
    report = Run(tmp_path / "search").read_json("report.json", "")
    assert report["ended"].startswith("budget.usd: $0.2 are spent") and "best.yaml" not in said
    assert process.returncode == 1 and "No trial finished" in said  # of those besides the start
    spent, ended = (
        sum(t["seconds"] for t in report["trials"]),
        [t["number"] for t in report["trials"] if t["status"] == "finished"],
    )
    assert spent >= 0.2
    said, report = search(config, "--budget.usd", "1000", env=local_ray)
    assert len(of(report, "search")) == 3 and {t["status"] for t in report["trials"]} == {"finished"}
    events = [e["trial"] for e in Journal(Run(tmp_path / "search")).events if e["event"] == "ended"]
    assert sorted(events) == [0, 1, 2, 3] and events[: len(ended)] == ended
    assert "$" in said and "1000" in said


def test_the_budget_of_the_cluster_ends_a_search_at_a_checkpoint(write, local_ray, tmp_path):
    """The signal that a cluster gives its jobs when its budget is spent (tests/cluster/test_e2e_money.py). The report is written."""
    journal = tmp_path / "search/journal.jsonl"
    config = write({"search": "random", "every": 20}, train={"max_steps": 4000, "logging_steps": 20, "save_steps": 20})
    process = start(config, env=local_ray)
    try:
        _until(lambda: journal.exists() and journal.read_text().count('"reported"') >= 2, process)
        stop = cluster_signals.Stop("budget.total_usd: $4.90 of $5.00 are spent.", time.time() + 60, 3.6)
        _tell(local_ray["RAY_ADDRESS"], stop.text, 60)
        said, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        _tell(local_ray["RAY_ADDRESS"], "", -1)  # for other tests on this Ray
    report = Run(tmp_path / "search").read_json("report.json", "")
    assert process.returncode == 1 and stop.text in report["ended"], said
    assert {t["status"] for t in report["trials"]} == {"running"} and len(report["trials"]) == 2
    for t in report["trials"]:
        step, _ = checkpoint.latest(Run(t["run"]))
        assert step and step >= t["reports"][-1]["step"] and step < 4000


def test_a_metric_that_no_trial_reports_ends_the_search_at_once(write, local_ray, tmp_path):
    process = start(write({"metric": "eval_los"}), env=local_ray)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and "metric: trials don't report eval_los. Nearest: eval_loss" in said
    report = Run(tmp_path / "search").read_json("report.json", "")
    assert all(len(t["reports"]) <= 1 for t in report["trials"])


def test_two_processes_cannot_run_the_same_search(write, local_ray, tmp_path):
    config, journal = write({"every": 20}, train={"max_steps": 4000}), tmp_path / "search/journal.jsonl"
    first = start(config, env=local_ray)
    try:
        _until(lambda: journal.exists() and '"proposed"' in journal.read_text(), first)
        second = start(config, env=local_ray)
        said, _ = second.communicate(timeout=PATIENCE)
        assert second.returncode == 1 and f"run: another process is searching in {tmp_path}/search." in said
    finally:
        warm.kill(psutil.Process(first.pid))
        first.wait()


def test_ctrl_c_ends_a_search_that_the_same_command_goes_on_with(write, tmp_path):
    config, journal = write({"scheduler": "asha", "concurrent": 1}), tmp_path / "search/journal.jsonl"
    process = start(config)
    _until(lambda: journal.exists() and '"reported"' in journal.read_text(), process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and f"Interrupted. Rerun: python -m tune --config {config}" in said
    assert "Started a local Ray" not in said
    said, report = search(config)
    assert len(of(report, "search")) == 4 and "goes on" in said


def test_a_search_that_is_killed_goes_on(write, tmp_path):
    """No finished trial is repeated, none is lost, and the settings are those of a search that was never killed."""
    keys = {"scheduler": "asha", "concurrent": 1, "budget": {"trials": 5}}
    _, whole = search(write(keys))
    (tmp_path / "search").rename(tmp_path / "whole")
    config, journal, killed = write(keys), tmp_path / "search/journal.jsonl", []
    at_once = {
        "RAY_gcs_rpc_server_reconnect_timeout_s": "1"
    }  # instead of a minute, after which a driver without Ray ends
    process = start(config, env=at_once)
    try:
        for events, what in KILLS:
            _until(lambda n=events: journal.exists() and len(journal.read_text().splitlines()) >= n, process)
            killed += _kill(process, what)
            if what != "trial":  # the lost process of a trial is Tune's to replace
                process.communicate(timeout=PATIENCE)
                process = start(config, env=at_once)
        said, _ = process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            warm.kill(psutil.Process(process.pid))
    assert process.returncode == 0 and len(killed) >= len(KILLS), said
    report = Run(tmp_path / "search").read_json("report.json", "")
    for key in ("settings", "status", "why"):
        assert [t[key] for t in report["trials"]] == [t[key] for t in whole["trials"]]
    for mine, theirs in zip(report["trials"], whole["trials"], strict=True):
        assert [(r["step"], r["eval_loss"]) for r in mine["reports"]] == [
            (r["step"], r["eval_loss"]) for r in theirs["reports"]
        ]
    ended = [e["trial"] for e in Journal(Run(tmp_path / "search")).events if e["event"] == "ended"]
    assert sorted(ended) == list(range(len(report["trials"])))


def _tell(address: str, text: str, seconds: float) -> None:
    """Asks the jobs of a cluster to stop, in a process of its own as the cluster's head does."""
    code = "import sys, time; from lib.runtime import cluster_signals as c, gcs; "
    code += "c.tell(gcs.Gcs(sys.argv[1]), c.Stop(sys.argv[2], time.time() + float(sys.argv[3]), 3.6))"
    subprocess.run([sys.executable, "-c", code, address, text, str(seconds)], cwd=REPO, check=True, timeout=PATIENCE)


def _until(state, process: subprocess.Popen) -> None:
    give_up = time.time() + PATIENCE
    while not state():
        assert process.poll() is None, process.communicate()[0]
        assert time.time() < give_up
        time.sleep(0.02)


def _kill(process: subprocess.Popen, what: str) -> list[int]:
    """Sends SIGKILL to the driver alone, to the process of a trial, or to Ray's own processes. Returns their pids."""
    names = {"trial": ["ImplicitFunc"], "ray": ["raylet", "gcs_server"]}
    tree = warm.tree(psutil.Process(process.pid))
    if what == "driver":
        found = [p for p in tree if p.pid == process.pid or "tune" in p.cmdline()]
    else:
        found = [
            p for p in tree if p.is_running() and any(n in " ".join([p.name(), *p.cmdline()[:1]]) for n in names[what])
        ]
    for p in found:
        p.send_signal(signal.SIGKILL)
    return [p.pid for p in found]
