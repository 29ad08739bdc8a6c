"""PPO as a whole job: an adapter and a value model, a resume from a checkpoint with a rollout worker, and ZeRO on two workers."""

import shutil

import pytest

from lib.run import Run
from tests.conftest import run_job
from tests.methods import rewarded, valued


@pytest.mark.slow
def test_a_job_with_a_value_model_resumes_bit_equal_with_a_rollout_worker(local_ray, tiny_model, runs, tmp_path):
    base, run = rewarded.base(tiny_model, str(tmp_path / "base")), Run(tmp_path / "run")
    words = valued.options(base, str(tmp_path), micro=2, max_steps=6, value=runs["reward"], eval_on_start="true")
    words += ["--model.adapter", "lora", "--model.peft.target_modules", "all-linear"]
    done = run_job("ppo", *words, "--run", run.path, env=local_ray)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0.1 × reference.chrf + -0.5 × length; an answer to each prompt" in done.stdout
    said = run.provenance()
    assert said["identities"]["train.value"] and said["repeated_rows"] == 0
    rows = run.metrics()
    assert sum("eval_reward" in r for r in rows) == 2 and sum("explained_variance" in r for r in rows) == 3

    cut = Run(tmp_path / "cut")
    shutil.copytree(run.path, cut.path)
    cut.remove("model")
    cut.write_json("provenance.json", said | {"status": "running"})
    shutil.rmtree(cut.at("checkpoints/checkpoint-6"))
    done = run_job("ppo", "--resume", cut.path, "--rollouts.workers", "1", "--rollouts.without", "wait", env=local_ray)
    assert done.returncode == 0, done.stderr
    assert "rollout worker 0 has started" in done.stdout + done.stderr
    assert cut.provenance()["model_sha256"] == said["model_sha256"]
    assert [r["kl"] for r in cut.metrics() if "kl" in r] == [r["kl"] for r in rows if "kl" in r]


@pytest.mark.slow
def test_zero_takes_the_steps_of_ddp(local_ray, tiny_model, tmp_path):
    base, found = rewarded.base(tiny_model, str(tmp_path / "base")), []
    for strategy in ("ddp", "zero2"):
        run = Run(tmp_path / strategy)
        words = valued.options(base, str(tmp_path), micro=2, max_steps=4)
        words += ["--scale.workers", "2", "--scale.strategy", strategy, "--run", run.path]
        done = run_job("ppo", *words, env=local_ray)
        assert done.returncode == 0, done.stdout + done.stderr
        found.append([[r[key] for r in run.metrics() if key in r] for key in ("loss", "kl_sequence", "reward")])
    assert len(found[0][0]) == 4 and abs(found[0][1][-1]) > 1e-4
    for one, other in zip(*found, strict=True):
        assert other == pytest.approx(one, abs=1e-5)
