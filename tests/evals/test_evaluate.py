"""jobs/eval.py from end to end on tiny models: every task, every file of the report."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from lib.evals.evaluate import evaluate
from lib.evals.job import EvalJob
from lib.evals.plan import plan
from lib.evals.report.schema import Report
from lib.evals.report.summary import CLOCK
from lib.run import Run
from tests import warm
from tests.conftest import PATIENCE, REPO, sign

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def job(runs, tmp_path_factory) -> EvalJob:
    return EvalJob(
        run=str(tmp_path_factory.mktemp("eval") / "eval"),
        runs={k: runs[k] for k in ("base", "sft", "dpo")},
        reward=runs["reward"],
        tasks=["demo", "perplexity", "preference_accuracy", "win_rate", "kl"],
        limit=6,
        max_new_tokens=8,
        dtype="float32",
        samples=2,
    )


@pytest.fixture(scope="module")
def report(job, local_ray) -> Report:
    return evaluate(plan(job), "python jobs/eval.py --config configs/eval.yaml", say=lambda line: None)


def of_the_models(report: Report) -> list:
    """Returns the metrics that don't depend on the clock."""
    return [m for m in report.metrics if m.metric not in CLOCK]


def test_every_task_gives_its_numbers(report, job):
    found = {(m.task, m.metric, m.run, m.versus, m.judge) for m in report.metrics}
    for run in job.runs:
        assert {("demo", "exact", run, None, None), ("perplexity", "perplexity", run, None, None)} <= found
    assert ("preference_accuracy", "preference_accuracy", "reward", None, None) in found
    assert {("win_rate", "win_rate", "dpo", "sft", "rule"), ("win_rate", "win_rate", "dpo", "sft", "reward")} <= found
    assert ("kl", "kl", "dpo", "sft", None) in found
    cut = {(m.task, m.run): m.value for m in report.metrics if m.metric == "cut_off"}
    assert {("demo", "sft"), ("win_rate", "sft"), ("win_rate", "dpo"), ("kl", "dpo")} <= set(cut)
    assert cut["demo", "sft"] > 0.5  # a random model completes hardly any of its answers within 8 tokens
    assert any("of sft's 6 answers to demo were cut off" in w for w in report.warnings)
    assert all(m.n == 6 for m in report.metrics if m.metric not in ("right_against_wrong", "bare_against_chatty"))
    assert all(m.low <= m.value <= m.high for m in report.metrics if m.low is not None)


def test_a_random_model_has_the_perplexity_of_its_vocabulary(report):
    """The weights are random, so each of 1,024 tokens is about equally likely."""
    base = next(m for m in report.metrics if (m.metric, m.run) == ("perplexity", "base"))
    assert 700 < base.value < 1500


def test_files(report, job):
    run = Run(job.run)
    assert Report.from_json(run.read_text("reports/report.json")) == report
    assert report.title in run.read_text("reports/report.md")
    rows = [json.loads(line) for line in run.read_text("reports/examples.jsonl").splitlines()]
    assert len(rows) == 6 * 3 + 6 * 2  # answers of three runs, and those of the two that were compared
    assert {r["run"] for r in rows if r["task"] == "win_rate"} == {"sft", "dpo"}
    assert [len(s.answers) for s in report.samples] == [3, 3]
    assert report.runs[1].curves[0].values[0] == 2.0 and report.runs[1].settings["train.seed"] == 42


def test_same_numbers_again_with_another_number_of_processes(report, job, local_ray, tmp_path):
    again = evaluate(plan(replace(job, run=str(tmp_path / "again"), workers=1)), say=lambda line: None)
    for a, b in zip(of_the_models(report), of_the_models(again), strict=True):
        assert (a.task, a.metric, a.run, a.n) == (b.task, b.metric, b.run, b.n)
        assert b.value == pytest.approx(a.value, rel=1e-5, abs=1e-6)
    assert [s.answers for s in again.samples] == [s.answers for s in report.samples]


def test_a_model_against_itself(job, runs, local_ray, tmp_path):
    """The same weights twice: the same answers, no KL, half the wins, and no significant difference."""
    twin = replace(
        job,
        run=str(tmp_path / "twin"),
        runs={"a": runs["sft"], "b": runs["sft"]},
        tasks=["demo", "win_rate", "kl"],
        workers=1,
    )
    report = evaluate(plan(twin), say=lambda line: None)
    assert {m.value for m in report.metrics if m.metric == "win_rate"} == {0.5}
    assert next(m.value for m in report.metrics if m.metric == "kl") == 0.0
    assert all(v.holds is None for v in report.verdicts if "win" in v.evidence or "above" in v.claim)


def test_every_decoding_is_a_column_and_best_of_takes_the_reward_runs_favourite(job, runs, local_ray, tmp_path):
    from lib.evals.tasks.demo import DemoTask
    from lib.generation.reward_model import RewardModel
    from lib.generation.sampling import Sampling
    from lib.generation.transformers_generator import TransformersGenerator

    words = ["greedy", "t=0.7,top_p=0.9", "best_of_3"]
    swept = replace(job, run=str(tmp_path / "sweep"), tasks=["demo"], decoding=words, limit=4, usd_per_hour=0.2)
    report = evaluate(plan(swept), say=lambda line: None)
    found = {(m.run, m.decoding) for m in report.metrics if m.metric == "exact"}
    assert found == {(run, word) for run in swept.runs for word in words}
    assert {c.decoding for c in report.comparisons} == set(words)
    cells = {
        (m.run, m.decoding): {n.metric: n.value for n in report.metrics if (n.run, n.decoding) == (m.run, m.decoding)}
        for m in report.metrics
        if m.metric == "exact"
    }
    assert all(
        c["seconds_per_answer"] > 0 and c["usd_per_1000"] > 0 and 0 < c.get("distinct_1", 1) <= 1
        for c in cells.values()
    )
    (failed,) = report.failures  # a random model gets all four wrong
    assert (failed.task, failed.run, failed.total, len(failed.samples)) == ("demo", "dpo", 4, 3)
    rows = [json.loads(line) for line in Run(swept.run).read_text("reports/examples.jsonl").splitlines()]
    chosen = {r["id"]: r["answer"] for r in rows if (r["run"], r["decoding"]) == ("sft", "best_of_3")}
    examples = DemoTask().examples(4)
    sampling = Sampling(1.0, n=3, max_new_tokens=8, seed=swept.seed)
    samples = TransformersGenerator(Run(runs["sft"]).model_dir()).generate([e.prompt for e in examples], sampling)
    judge = RewardModel(Run(runs["reward"]).model_dir())
    for e, answers in zip(examples, samples, strict=True):
        said = [[*e.prompt, {"role": "assistant", "content": a.text}] for a in answers]
        rewards = judge.reward(said)
        best = answers[rewards.index(max(rewards))].text
        assert chosen[e.id] == best


def test_killed_twice_and_finished_by_another_number_of_processes(job, report, tmp_path):
    """kill -9 of everything, twice, in the middle of the work: the numbers equal those of the undisturbed evaluation."""
    run = Run(str(tmp_path / "killed"))
    options = [f"--runs.{k}={v}" for k, v in job.runs.items()] + ["--tasks", *job.tasks, "--reward", job.reward]
    options += ["--limit", "6", "--max_new_tokens", "8", "--dtype", "float32", "--samples", "2", "--run", run.path]
    alone = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}

    def start(workers: int) -> subprocess.Popen:
        command = [warm.python(), "jobs/eval.py", *options, "--workers", str(workers)]
        return subprocess.Popen(
            command, cwd=REPO, env=alone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    for workers, shards in ((2, 2), (1, 6)):
        process = start(workers)
        give_up = time.time() + PATIENCE
        while len(run.files("ledger") if run.fs.exists(run.at("ledger")) else []) < shards:
            assert process.poll() is None and time.time() < give_up, process.communicate()[0]
            time.sleep(0.02)
        warm.kill(psutil.Process(process.pid))
        process.wait()
        assert not run.fs.exists(run.at("reports/report.json"))
    kept = {name: os.stat(run.at(f"ledger/{name}")).st_mtime_ns for name in run.files("ledger")}
    last = start(2)
    out = last.communicate(timeout=PATIENCE)[0]
    assert last.returncode == 0, out
    assert "from the ledger" in out
    assert kept.items() <= {n: os.stat(run.at(f"ledger/{n}")).st_mtime_ns for n in run.files("ledger")}.items()
    again = Report.from_json(run.read_text("reports/report.json"))
    assert of_the_models(again) == of_the_models(report)
    assert again.samples == report.samples


def test_diff_of_two_runs(report, job, capsys):
    sys.path.insert(0, str(REPO))
    from jobs.diff import main

    assert main([job.runs["sft"], job.runs["dpo"], "--report", job.run]) == 0
    out = capsys.readouterr().out
    assert "model_sha256" in out and "sft  →  dpo" in out  # settings
    assert "demo: slots" in out and "Holm" in out
    assert main(["base", "dpo", "--report", job.run, "--examples", "1"]) == 0
    with pytest.raises(SystemExit) as stopped:
        main([job.runs["sft"], "nobody", "--report", job.run])
    assert stopped.value.code == 2 and "nobody is not in the report; it has base" in capsys.readouterr().err


def test_a_model_that_does_not_load_is_named(job, make_run, local_ray, tmp_path):
    broken = make_run("broken")
    (Run(broken).fs).rm(Run(broken).at("model/model.safetensors"))
    sign(Run(broken))  # otherwise it would be rejected before that
    with pytest.raises(RuntimeError, match=r"broken: .*(safetensors|no file)"):
        evaluate(
            plan(replace(job, run=str(tmp_path / "x"), runs={"broken": broken}, reward=None, tasks=["demo"])),
            say=lambda line: None,
        )


@pytest.mark.soak
def test_on_a_file_of_pairs_as_a_user_does_it(runs, pairs_file, tmp_path):
    """Other data than the demo: prompts, chosen answers and pairs all from one file; the reward run judges."""
    names = [f"--runs.{k}={runs[k]}" for k in ("sft", "dpo")]
    tasks = ["--tasks", "perplexity", "preference_accuracy", "win_rate", "kl"]
    data = ["--data.source", pairs_file, "--data.heldout_fraction", "0.3"]
    rest = ["--reward", runs["reward"], "--limit", "5", "--max_new_tokens", "4", "--run", str(tmp_path / "e")]
    alone = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [warm.python(), "jobs/eval.py", *names, *tasks, *data, *rest]
    done = subprocess.run(command, cwd=REPO, env=alone, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    report = Report.from_json(Run(str(tmp_path / "e")).read_text("reports/report.json"))
    assert {(m.metric, m.n) for m in report.metrics if m.headline} == {
        (x, 5) for x in ("perplexity", "preference_accuracy", "win_rate", "kl")
    }
    assert {m.judge for m in report.metrics if m.metric == "win_rate"} == {"reward"}
    assert any("perplexity" in v.claim for v in report.verdicts)
    assert Run(str(tmp_path / "e")).finished() and "jobs/eval.py" in report.commands[-1]
    assert "reports/report.html" in done.stdout and report.next[1] in done.stdout


def test_scores_that_are_ratios_are_shown_and_compared(job, local_ray, tmp_path, capsys):
    """IFEval counts (followed instructions, instructions): the page shows their ratio, jobs/diff.py sums both."""
    rows = [
        {
            "key": i,
            "prompt": "Say it.",
            "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
            "kwargs": [{}, {}],
        }
        for i in range(3)
    ]
    file = tmp_path / "ifeval.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    asked = replace(job, run=str(tmp_path / "i"), tasks=["ifeval"], task_data={"ifeval": str(file)})
    report = evaluate(plan(asked), say=lambda line: None)
    shown = [s for sample in report.samples for s in sample.scores["dpo"].values()]
    assert shown and all(isinstance(x, float) and 0 <= x <= 1 for x in shown)
    assert report.failures[0].total == 3  # no model here puts quotation marks around its answer
    from jobs.diff import main

    assert main(["base", "dpo", "--report", asked.run]) == 0
    assert "ifeval" in capsys.readouterr().out


def test_arena_rates_every_run(job, local_ray, tmp_path):
    report = evaluate(plan(replace(job, run=str(tmp_path / "a"), tasks=["arena"])), say=lambda line: None)
    found = {(m.run, m.judge): m for m in report.metrics if m.metric == "rating"}
    assert set(found) == {(run, judge) for run in job.runs for judge in ("rule", "reward")}
    assert found["base", "reward"].value == 1000 and found["base", "reward"].low is None
    sft = found["sft", "reward"]
    assert sft.low <= sft.value <= sft.high and sft.n == 6 and sft.unit == "Elo points"
    assert "rating, judge: reward" in Run(str(tmp_path / "a")).read_text("reports/report.md")
