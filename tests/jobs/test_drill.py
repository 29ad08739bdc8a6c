"""The drill: killed jobs end with exactly the undisturbed run's weights, and a job that doesn't is reported."""

import json
import subprocess

import psutil
import pytest
import yaml

from jobs import drill
from lib.run import Run
from tests import warm


@pytest.mark.parametrize("options", [["--kills", "0"], ["--kills=-1"], ["--at", "0"]])
def test_a_drill_without_a_kill_proves_nothing(options, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["jobs/drill.py", "--config", "configs/sft.yaml", "--dry-run", *options])
    with pytest.raises(SystemExit, match="2"):
        drill.main()
    assert "--kills and --at: must be 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("kind", drill.KINDS)
def test_a_job_that_ends_before_its_kill_proves_nothing(kind, tmp_path, monkeypatch, capsys):
    """Its run is repeated with an earlier kill; without one that hits, the drill fails."""
    started = []

    def ended(stage, run: Run, *options, resume=False) -> subprocess.Popen:
        started.append(run.path)
        run.append_text("metrics.jsonl", "".join(f'{{"step": {n}, "loss": {1 / n}}}\n' for n in (1, 2, 3)))
        run.write_json("provenance.json", {"model_sha256": "0" * 64, "steps": 3, "seconds": {"train": 0.03}})
        (tmp_path / run.at("checkpoints/checkpoint-3")).mkdir(parents=True)
        return subprocess.Popen(["true"])

    monkeypatch.setattr(drill, "start", ended)
    argv = ["jobs/drill.py", "--config", "configs/sft.yaml", "--kills", "1", "--kinds", kind, "--at", "3"]
    monkeypatch.setattr("sys.argv", [*argv, "--run", str(tmp_path / "drill")])
    with pytest.raises(SystemExit, match="Even after step 1"):
        drill.main()
    assert [p.rpartition("/")[2] for p in started] == ["undisturbed", f"1-{kind}-3", f"1-{kind}-1"]
    assert "trying after step 1" in (said := capsys.readouterr().out) and "bit-equal" not in said


def test_a_worker_is_killed_only_before_the_last_step(tmp_path):
    run = Run(str(tmp_path))
    run.append_text("metrics.jsonl", '{"step": 2, "loss": 1.0}\n')
    with subprocess.Popen(["sleep", "600"]) as process:
        worker = psutil.Process(process.pid)
        assert not drill.kill_worker([worker], run, last=2) and worker.status() != psutil.STATUS_STOPPED
        assert drill.kill_worker([worker], run, last=3) and process.wait() == -9
    assert not drill.kill_worker([worker], run, last=3) and not drill.kill_worker([], run, last=3)


@pytest.mark.slow
def test_bit_equal_after_a_killed_worker_and_a_damaged_checkpoint(
    tiny_model, pairs_file, tmp_path, monkeypatch, capsys
):
    """On two workers, at random steps. The disturbed runs really were killed: each continued from a checkpoint. `make soak` runs all five
    kinds of kill for two stages."""
    config = {
        "model": {"base": tiny_model, "adapter": "lora", "peft": {"r": 4, "target_modules": "all-linear"}},
        "data": {"source": pairs_file},
        "train": {"max_steps": 8, "save_steps": 2, "learning_rate": 1e-3},
        "scale": {"workers": 2, "global_batch": 8, "micro_batch": 2},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config))
    argv = ["jobs/drill.py", "--config", str(tmp_path / "job.yaml"), "--stage", "dpo", "--kills", "2", "--seed", "1"]
    monkeypatch.setattr("sys.argv", [*argv, "--kinds", "worker", "flip", "--run", str(tmp_path / "drill")])
    monkeypatch.setattr("sys.executable", warm.python())
    monkeypatch.setattr(drill, "started_by", lambda process: warm.tree(psutil.Process(process.pid))[1:])
    drill.main()
    said = capsys.readouterr().out
    assert said.count("bit-equal") == 2 and "All 2 disturbed runs" in said
    hashes = {json.loads(p.read_text())["model_sha256"] for p in (tmp_path / "drill").rglob("provenance.json")}
    assert len(hashes) == 1
