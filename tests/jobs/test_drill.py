"""The drill: killed jobs end with exactly the undisturbed run's weights, and a job that doesn't is reported."""

import json

import psutil
import pytest
import yaml

from jobs import drill
from tests import warm


@pytest.mark.parametrize("options", [["--kills", "0"], ["--kills=-1"], ["--at", "0"]])
def test_a_drill_without_a_kill_proves_nothing(options, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["jobs/drill.py", "--config", "configs/sft.yaml", "--dry-run", *options])
    with pytest.raises(SystemExit, match="2"):
        drill.main()
    assert "--kills and --at: must be 1 or more" in capsys.readouterr().err


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
    argv = ["jobs/drill.py", "--config", str(tmp_path / "job.yaml"), "--stage", "dpo", "--kills", "2"]
    monkeypatch.setattr("sys.argv", [*argv, "--kinds", "worker", "flip", "--run", str(tmp_path / "drill")])
    monkeypatch.setattr("sys.executable", warm.python())
    monkeypatch.setattr(drill, "started_by", lambda process: warm.tree(psutil.Process(process.pid))[1:])
    drill.main()
    said = capsys.readouterr().out
    assert said.count("bit-equal") == 2 and "All 2 disturbed runs" in said
    hashes = {json.loads(p.read_text())["model_sha256"] for p in (tmp_path / "drill").rglob("provenance.json")}
    assert len(hashes) == 1
