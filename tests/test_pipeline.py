"""Chains of jobs: wrong files are refused, names follow the inputs, and a chain goes on from wherever it was stopped."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from jobs import pipeline
from lib.cli import UsageError
from lib.run import Run
from tests.conftest import REPO

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


def tree(process: subprocess.Popen) -> list[psutil.Process]:
    p = psutil.Process(process.pid)
    return [p, *p.children(recursive=True)]


def until_step(folder, name: str, step: int, process: subprocess.Popen) -> None:
    deadline = time.time() + 180
    while not any(r["step"] >= step for d in folder.glob(f"{name}-*") for r in Run(d).metrics()):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_goes_on_where_it_was_stopped(tiny_model, chats_file, pairs_file, tmp_path):
    """Ctrl-C in the first step, kill -9 of everything in the second; then it finishes, and after that has nothing to do."""
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
    command = [sys.executable, "jobs/pipeline.py", "--config", str(path)]

    def start():
        return subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    process = start()
    until_step(runs, "sft", 5, process)
    started = tree(process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 130 and "Interrupted" in out, out
    assert not psutil.wait_procs(started, timeout=30)[1], "Ctrl-C left processes behind"

    process = start()
    until_step(runs, "dpo", 5, process)
    for p in tree(process):
        os.kill(p.pid, signal.SIGKILL)
    out, _ = process.communicate()
    assert "sft (going on)" in out

    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sft: done before" in done.stdout and "dpo (going on)" in done.stdout
    assert len(list(runs.glob("*-*/provenance.json"))) == 2
    again = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0 and "dpo: done before" in again.stdout
