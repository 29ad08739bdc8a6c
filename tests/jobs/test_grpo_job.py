"""GRPO as a whole job: an adapter on two workers, a reward run among its rewards, and a resume from a checkpoint."""

import shutil

import pytest

from lib.run import Run
from tests.conftest import run_job
from tests.methods import rewarded


@pytest.mark.slow
def test_a_job_with_a_reward_run_resumes_bit_equal(local_ray, tiny_model, runs, tmp_path):
    base, run = rewarded.base(tiny_model, str(tmp_path / "base")), Run(tmp_path / "run")
    words = rewarded.options(base, str(tmp_path), micro=2, max_steps=4, save_steps=2, eval_on_start="true")
    words += ["--model.adapter", "lora", "--model.peft.target_modules", "all-linear", "--scale.workers", "2"]
    words += [f"--rewards.run:{runs['reward']}", "0.5", "--run", run.path]
    done = run_job("grpo", *words, env=local_ray)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"0.5 × run:{runs['reward']}" in done.stdout and "held-out reward" in done.stdout
    said = run.provenance()
    assert said["workers"] == 2 and said["identities"][f"rewards.run:{runs['reward']}"] and said["repeated_rows"] == 0
    rows = run.metrics()
    assert "Curves and warnings:" in done.stdout and "<svg" in run.read_text("reports/rl.html")
    assert said["rl_warnings"] == []  # of 4 steps
    assert all(r["rewards/missing"] == 0 for r in rows if "reward" in r) and sum("eval_reward" in r for r in rows) == 2

    cut = Run(tmp_path / "cut")
    shutil.copytree(run.path, cut.path)
    cut.remove("model")
    cut.write_json("provenance.json", said | {"status": "running"})
    shutil.rmtree(cut.at("checkpoints/checkpoint-4"))
    changed = run_job("grpo", "--resume", cut.path, "--rewards.length", "-1", env=local_ray)
    assert changed.returncode == 2 and "rewards.length: the run has -0.5, this configuration -1.0" in changed.stderr
    done = run_job("grpo", "--resume", cut.path, env=local_ray)
    assert done.returncode == 0, done.stderr
    assert cut.provenance()["model_sha256"] == said["model_sha256"]
    assert [r["reward"] for r in cut.metrics() if "reward" in r] == [r["reward"] for r in rows if "reward" in r]


@pytest.mark.slow
def test_zero_takes_the_steps_of_ddp_with_a_reference_model(local_ray, tiny_model, tmp_path):
    base, found = rewarded.base(tiny_model, str(tmp_path / "base")), []
    for strategy in ("ddp", "zero2"):
        run = Run(tmp_path / strategy)
        words = rewarded.options(base, str(tmp_path), micro=2, max_steps=3, beta=0.04)
        words += ["--scale.workers", "2", "--scale.strategy", strategy, "--run", run.path]
        done = run_job("grpo", *words, env=local_ray)
        assert done.returncode == 0, done.stdout + done.stderr
        found.append([(r["loss"], r["kl"], r["reward"]) for r in run.metrics() if "loss" in r])
    assert len(found[0]) == 3 and max(kl for _, kl, _ in found[0]) > 1e-4
    for one, other in zip(*found, strict=True):
        assert other == pytest.approx(one, abs=1e-5)
