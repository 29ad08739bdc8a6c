"""python -m cluster plan, as a user meets it: the numbers, the offers, what doesn't fit, and mistakes."""

import json
import subprocess
import sys

import pytest

from cluster import plan
from cluster.__main__ import main
from cluster.estimate import candidates, fit, throughput
from cluster.market import registry
from cluster.node import autoscaler_config
from lib.config.config_file import read_yaml
from lib.run import Run
from tests.cluster.conftest import simulator
from tests.conftest import PATIENCE, REPO, run_job

CONFIGS = sorted(REPO.glob("configs/**/*.yaml"))


@pytest.fixture(scope="module")
def sim():
    with simulator() as started:
        yield started


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    for name in registry.MARKETS:
        monkeypatch.delenv(f"{name.upper()}_API_KEY", raising=False)
        monkeypatch.delenv(f"{name.upper()}_URL", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # the command sets this for its process
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("lib.runtime.hardware.local_gpus", lambda: 0)


@pytest.fixture
def config(tiny_model, pairs_file, tmp_path):
    """A DPO job on 64 pairs of two short answers."""
    file = tmp_path / "dpo.yaml"
    file.write_text(
        f"run: {tmp_path}/runs/dpo\nmodel: {{base: {tiny_model}}}\ndata: {{source: {pairs_file}, heldout_fraction: 0.25}}\n"
        "train: {max_length: 64, num_train_epochs: 2, gradient_checkpointing: false}\n"
        "scale: {workers: 1, global_batch: 8, micro_batch: 4, precision: fp32}\n"
    )
    return str(file)


def planned(capsys, *argv: str) -> dict:
    code = main(["plan", *argv, "--json"])
    said = json.loads(capsys.readouterr().out)
    assert code == (0 if any(c["problem"] is None for c in said["candidates"]) else 1)
    return said


def test_numbers(config, capsys):
    said = planned(capsys, config)
    rows = said["lengths"]["read"]
    assert said["parameters"] == said["trainable"] == 139_584
    assert said["steps"] == 2 * -(-rows // 8) and said["lengths"]["longest"] <= 64
    assert said["tokens"] == pytest.approx(said["steps"] * 8 * 2 * said["lengths"]["mean"], abs=1)
    here, colab = (
        next(c for c in said["candidates"] if c["candidate"]["where"] == w) for w in ("this machine", "Colab")
    )
    assert here["footprint"]["parts"]["reference"] == 139_584 * 4
    assert here["usd"] == colab["usd"] == 0 and colab["sessions"] == 1
    assert "measured" in here["speed"] and "published: 30% (assumed) of 65 TFLOPS" in colab["speed"]
    assert [why.split(":")[0] for why in said["left_out"]] == ["vast", "runpod"]


def test_offers_of_the_markets(config, sim, monkeypatch, capsys):
    for name, value in sim.env.items():
        monkeypatch.setenv(name, value)
    said = planned(capsys, config, "--gpu", "RTX 4090|A100", "--train.max_steps", "3000000000", "--mtbf-hours", "2")
    rented = [c for c in said["candidates"] if c["candidate"]["where"] in ("vast", "runpod")]
    assert {c["candidate"]["where"] for c in rented} == {"vast", "runpod"} and said["left_out"] == []
    assert all("4090" in c["candidate"]["device"] or "A100" in c["candidate"]["device"] for c in rented)
    for c in rented:
        assert (c["preemptions"] > 1) == c["candidate"]["spot"], c
        assert 0 < c["wasted"] < 0.5
    spot = next(c for c in rented if c["candidate"]["spot"])
    while_up = spot["usd"] - spot["boots_usd"]
    assert while_up < spot["hours"] * spot["candidate"]["usd_per_hour"]  # nothing is paid while there is no machine
    for c in rented:  # every boot downloads its image and packages again, at the host's price of traffic
        boots = c["candidate"]["machines"] + c["preemptions"]
        assert c["boots_usd"] == pytest.approx(c["candidate"]["boot_usd"] * boots)
    prices = [m["down_usd_per_gb"] for m in sim.get("machines") if m["market"] == "vast"]
    gb = autoscaler_config.IMAGE_GB + autoscaler_config.INSTALL_GB
    assert {round(c["candidate"]["boot_usd"] / gb, 4) for c in rented} <= {*prices, 0.0} and any(
        c["boots_usd"] for c in rented
    )
    assert sim.bill()["rentals"] == []


def test_long_jobs_take_several_sessions_on_colab(config, capsys):
    said = planned(capsys, config, "--train.max_steps", "3000000000")
    colab = next(c for c in said["candidates"] if c["candidate"]["where"] == "Colab")
    assert colab["sessions"] >= 2 and 12 * (colab["sessions"] - 1) < colab["hours"] <= 12 * colab["sessions"]


def test_what_does_not_fit_and_the_remedy_that_does(config):
    work, _ = plan.understand("dpo", ["--config", config])
    foot = lambda **keys: work.changed(**keys).footprint(True, "fp32").total  # noqa: E731
    small = candidates.Candidate("somewhere", "Tesla T4", 1, (foot(micro_batch=1) + foot(micro_batch=2)) // 2)
    row = fit.judge(work, small, [], 8)
    assert row.problem.startswith("needs ") and row.remedy == "scale.micro_batch: 1"
    assert fit.judge(work.changed(micro_batch=1), small, [], 8).problem is None
    tiny = fit.judge(work, candidates.Candidate("nowhere", "Tesla T4", 1, 1 << 20), [], 8)
    assert tiny.problem and tiny.remedy is None


def test_table(config, capsys):
    assert main(["plan", config]) == 0
    out = capsys.readouterr().out
    for word in (
        "139,584",
        "memory at the peak",
        "reference",
        "Colab",
        "this machine",
        "train.save_steps",
        "vast: there is no API key",
    ):
        assert word in out, out


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong", [["--train.betta", "0.1"], ["--scale.global_batch", "0"], ["--model.base", "runs/nowhere"]]
)
def test_mistakes_are_said_as_the_stage_says_them(config, wrong):
    command = [sys.executable, "-m", "cluster", "plan", config, *wrong]
    plan = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)
    job = run_job("dpo", "--config", config, "--dry-run", *wrong, env={"RAY_ADDRESS": "127.0.0.1:9"})
    assert plan.returncode == job.returncode == 2
    assert plan.stderr == job.stderr


def test_stages(config, capsys):
    with pytest.raises(SystemExit) as e:
        main(["plan", config, "--mtbf-hours", "0"])
    assert e.value.code == 2 and "--mtbf-hours: must be at least 0.01, is 0" in capsys.readouterr().err
    with pytest.raises(SystemExit) as e:
        main(["plan", config, "--stage", "dop"])
    assert e.value.code == 2 and "Nearest: dpo" in capsys.readouterr().err
    assert main(["plan", "configs/dop.yaml"]) == 2 and "no file configs/dop.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("file", CONFIGS, ids=[str(p.relative_to(REPO)) for p in CONFIGS])
@pytest.mark.slow
def test_every_config(file, tiny_model, tmp_path, monkeypatch, capsys):
    """Each is planned, or rejected in one sentence because it isn't a training job's."""
    monkeypatch.chdir(REPO)
    job = read_yaml(str(file))
    scratch = job.get("model", {}).get("base") == "none"
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))  # bases that are made aren't kept
    options = ["--run", str(tmp_path / "run"), *(["--model.size", "4m"] if scratch else ["--model.base", tiny_model])]
    options += ["--train.teacher", tiny_model] if "teacher" in job.get("train", {}) else []
    options += ["--train.keep_layers", "1"] if "keep_layers" in job.get("train", {}) else []  # of the model's 2 layers
    if "train" in job and "rewards" not in job:
        assert planned(capsys, str(file), *options)["steps"] > 0
        return
    with pytest.raises(SystemExit) as e:
        main(["plan", str(file), *(options if "train" in job else [])])
    why = "can't be estimated yet" if "rewards" in job else "is not a stage that trains"
    assert e.value.code == 2 and why in capsys.readouterr().err


def test_a_job_whose_run_is_there_already(config, tmp_path, capsys):
    """Its plan is still printed, both by the job's own --dry-run and here."""
    run = Run(str(tmp_path / "runs" / "dpo"))
    run.write_json("job.yaml", {})
    run.write_json("provenance.json", {"status": "finished"})
    assert main(["plan", config]) == 0
    refused = run_job("dpo", "--config", config)
    assert refused.returncode == 2 and "already holds a run, which is finished" in refused.stderr
    dry = run_job("dpo", "--config", config, "--dry-run")
    assert dry.returncode == 0 and "already holds a run, which is finished" in dry.stdout, dry.stderr


def test_a_finished_run_tells_the_speed(config, tmp_path, capsys):
    """Predicts from its tokens/s times its operations per token, for one worker."""
    work, planned_job = plan.understand("dpo", ["--config", config])
    run = Run(str(tmp_path / "runs" / "before"))
    run.write_json("job.yaml", planned_job.job.to_dict() | {"run": run.path})
    run.write_json(
        "provenance.json",
        {
            "status": "finished", "stage": "dpo", "hardware": "cpu × 1", "precision": "fp32", "workers": 2, "tokens": 1000,
            "tokens_per_second": 500.0, "seconds": {"total": 30.0, "train": 10.0}, "data": {"rows": 48},
        },
    )  # fmt: skip
    said = planned(capsys, config)
    here = next(c for c in said["candidates"] if c["candidate"]["where"] == "this machine")
    assert here["speed"] == "measured: before"
    known = throughput.load()
    assert [(m.run, m.start_s) for m in known] == [(run.path, 20.0)]
    assert known[0].flops == pytest.approx(250 * work.operations(False, "fp32"))
    assert here["hours"] * 3600 == pytest.approx(said["tokens"] / 250 + 20, rel=0.02)
