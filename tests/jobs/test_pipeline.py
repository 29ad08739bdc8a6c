"""Chains of jobs: wrong files are rejected, run names depend on the inputs, and a chain continues wherever it was stopped."""

import os
import signal
import subprocess
import time

import psutil
import pytest
import yaml

from jobs import pipeline
from lib.errors import UsageError
from lib.run import Run
from tests import warm
from tests.conftest import PATIENCE, REPO

STEP = {"stage": "sft", "config": "configs/sft.yaml"}


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"stepps": {"a": STEP}}, ["stepps", "Nearest: steps"]),
        ({"folder": "runs/x"}, ["steps is missing"]),
        ({"steps": [STEP]}, ["steps is missing"]),
        ({"steps": {"a": STEP | {"confg": "x"}}}, ["steps.a.confg", "Nearest: config"]),
        ({"steps": {"a": STEP | {"minutes": 0}}}, ["steps.a.minutes", "above 0"]),
        ({"steps": {"a": STEP | {"stage": "stf"}}}, ["steps.a.stage", "jobs/stf.py", "sft"]),
        ({"steps": {"a": STEP | {"config": "configs/no.yaml"}}}, ["steps.a.config", "configs/no.yaml"]),
        ({"steps": {"a": STEP, "b": STEP | {"set": {"model.base": "{c}"}}}}, ["steps.b.set.model.base", "'c'"]),
        ({"steps": {}}, ["steps is missing"]),
        ({"folder": None, "steps": {"a": STEP}}, ["folder: must be a directory"]),
        ({"steps": {"a": STEP | {"minutes": True}}}, ["steps.a.minutes", "above 0"]),
        ({"steps": {"a": STEP | {"minutes": float("nan")}}}, ["steps.a.minutes", "above 0"]),
        ({"steps": {"a": STEP | {"set": None}}}, ["steps.a.set: must be keys and values"]),
        ({"steps": {"a": STEP | {"config": None}}}, ["steps.a.config: must be a file's path"]),
        ({"steps": {"a": STEP, "b": STEP | {"set": {"train.sede": 1}}}}, ["steps.b: --train.sede", "train.seed"]),
        ({"steps": {"a": STEP, "b": STEP | {"set": {"train.seed": -1}}}}, ["steps.b: train.seed: must be at least 0"]),
        ({"steps": {"a": STEP | {"set": {"train.max_steps": "1:30"}}}}, ["steps.a: --train.max_steps: 1:30 is not"]),
        (
            {"steps": {"e": {"stage": "eval", "config": "configs/eval.yaml", "set": {"limit": "ten"}}}},
            ["steps.e: limit: must be a whole"],
        ),
        (
            {"steps": {"q": {"stage": "quantize", "config": "configs/quantize.yaml", "set": {"method": "w4"}}}},
            ["steps.q: method: must be one of"],
        ),
    ],
)
def test_wrong_files(tree, says, tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(UsageError) as e:
        pipeline.load(str(path))
    for word in says:
        assert word in str(e.value)


def test_the_name_follows_the_inputs(tiny_model, chats_file, tmp_path):
    config = tmp_path / "sft.yaml"

    def identity(change: dict, **settings) -> str:
        config.write_text(yaml.safe_dump({"model": {"base": tiny_model}, "data": {"source": chats_file}} | change))
        return pipeline.identity({"stage": "sft", "config": str(config)}, settings)

    same = identity({})
    assert identity({}) == same
    assert identity({"train": {"seed": 1}}) != same
    assert identity({}, **{"model.base": "/runs/other"}) != same
    assert identity({}, **{"data.limit": "10"}) != same
    template = tmp_path / "t.jinja"
    names = set()
    for text in ("one", "another"):
        template.write_text(text)
        names.add(identity({"model": {"base": tiny_model, "chat_template": str(template)}}))
    assert len(names) == 2
    with pytest.raises(UsageError, match=r"data\.limmit is not a key of a job\. Nearest: limit"):
        identity({}, **{"data.limmit": "10"})
    with open(chats_file) as f:
        shorter = tmp_path / "shorter.jsonl"
        shorter.write_text("".join(f.readlines()[:-1]))
    assert identity({}, **{"data.source": str(shorter)}) != same


def test_a_steps_name_follows_its_latest_run(tmp_path):
    """The link leads to the latest run, in every way that a run can be named; a file that isn't a link is left alone."""
    folder = str(tmp_path)
    for name in ("sft-11111111", "sft-22222222"):
        Run(f"{folder}/{name}").write_json("job.yaml", {"stage": "sft"})
        pipeline.point(pipeline.latest(folder, "sft"), Run(f"{folder}/{name}"))
    assert os.readlink(tmp_path / "sft") == "sft-22222222" and not list(tmp_path.glob(".sft*"))
    assert Run(tmp_path / "sft").path == f"{folder}/sft-22222222" and Run(tmp_path / "sft").is_run()
    (tmp_path / "dpo").mkdir()
    with pytest.raises(UsageError, match=r"steps\.dpo: .*/dpo is in the way of a link"):
        pipeline.latest(folder, "dpo")


def until_step(folder, name: str, step: int, process: subprocess.Popen) -> None:
    deadline = time.time() + PATIENCE
    while not any(r["step"] >= step for d in folder.glob(f"{name}-*") for r in Run(d).metrics()):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_goes_on_where_it_was_stopped(tiny_model, chats_file, pairs_file, tmp_path):
    """Ctrl-C in the first step, kill -9 of everything in the second; then the chain finishes, and after that has nothing to do."""
    runs = tmp_path / "runs"
    common = {
        "train": {"max_steps": 40, "save_steps": 4, "logging_steps": 1},
        "scale": {"global_batch": 8, "micro_batch": 1},
    }
    steps = {}
    for stage, source in (("sft", chats_file), ("dpo", pairs_file)):
        config = tmp_path / f"{stage}.yaml"
        config.write_text(yaml.safe_dump(common | {"model": {"base": tiny_model}, "data": {"source": source}}))
        steps[stage] = {"stage": stage, "config": str(config)}
    steps["dpo"]["set"] = {"model.base": "{sft}"}
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump({"folder": str(runs), "steps": steps}, sort_keys=False))
    command = [warm.python(), "jobs/pipeline.py", "--config", str(path)]

    def start():
        return subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    process = start()
    until_step(runs, "sft", 5, process)
    started = warm.tree(psutil.Process(process.pid))
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and "Interrupted" in out, out
    assert not psutil.wait_procs(started, timeout=PATIENCE)[1], "Ctrl-C left processes behind"

    process = start()
    until_step(runs, "dpo", 5, process)
    warm.kill(psutil.Process(process.pid))
    out, _ = process.communicate()
    assert "sft (resuming)" in out

    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sft: already done" in done.stdout and "dpo (resuming)" in done.stdout
    assert len(list(runs.glob("*-*/provenance.json"))) == 2
    assert {os.readlink(runs / stage) for stage in steps} == {p.parent.name for p in runs.glob("*-*/provenance.json")}
    again = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)
    assert again.returncode == 0 and "dpo: already done" in again.stdout
    weights = next(runs.glob("sft-*/model/model.safetensors"))
    os.truncate(weights, 100)
    again = subprocess.run([*command, "--dry-run"], cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)
    assert "sft (resuming)" in again.stdout and "dpo: already done" in again.stdout, again.stdout + again.stderr
