"""The drill itself: killed jobs end with the undisturbed run's very weights, and a job that doesn't is told apart."""

import json
import subprocess
import sys

import pytest
import yaml

from jobs import drill
from tests.conftest import PATIENCE, REPO


@pytest.mark.parametrize("options", [["--kills", "0"], ["--kills=-1"], ["--at", "0"]])
def test_a_drill_without_a_kill_proves_nothing(options, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["jobs/drill.py", "--config", "configs/sft.yaml", "--dry-run", *options])
    with pytest.raises(SystemExit, match="2"):
        drill.main()
    assert "--kills and --at: must be 1 or more" in capsys.readouterr().err


@pytest.mark.slow
def test_bit_equal_after_a_killed_worker_and_a_damaged_checkpoint(tiny_model, pairs_file, tmp_path):
    """On two workers, at random steps; the disturbed runs really were killed: each went on from a checkpoint. `make soak` has
    all five kinds of kill, of two stages."""
    config = {
        "model": {"base": tiny_model, "adapter": "lora", "lora": {"r": 4, "target_modules": "all-linear"}},
        "data": {"source": pairs_file},
        "train": {"max_steps": 8, "save_steps": 2, "learning_rate": 1e-3},
        "scale": {"workers": 2, "global_batch": 8, "micro_batch": 2},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config))
    command = [
        sys.executable,
        "jobs/drill.py",
        "--config",
        str(tmp_path / "job.yaml"),
        "--stage",
        "dpo",
        "--kills",
        "2",
    ]
    command += ["--kinds", "worker", "flip", "--run", str(tmp_path / "drill")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("bit-equal") == 2 and "All 2 disturbed runs" in done.stdout
    hashes = {json.loads(p.read_text())["model_sha256"] for p in (tmp_path / "drill").rglob("provenance.json")}
    assert len(hashes) == 1
