"""Whole jobs on a local Ray with a tiny model: resume, s3://, NaN, QLoRA, adapters, elastic workers, job submission."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from lib.run import Run
from lib.runtime import checkpoint, integrity
from tests import warm
from tests.conftest import PATIENCE, REPO, free_port, run_job, s3_environment, wait_for_port

SHORT = [
    "--train.max_steps",
    "6",
    "--train.save_steps",
    "2",
    "--train.logging_steps",
    "1",
    "--train.learning_rate",
    "1e-3",
    "--scale.global_batch",
    "8",
    "--scale.micro_batch",
    "4",
]


def losses(run: Run) -> list[float]:
    return [r["loss"] for r in run.metrics() if "loss" in r]


@pytest.fixture(scope="module")
def sft(tmp_path_factory, tiny_model, chats_file):
    """A finished SFT run (all weights, one worker), its arguments and its output."""
    run = Run(tmp_path_factory.mktemp("jobs") / "sft")
    argv = ["--model.base", tiny_model, "--data.source", chats_file, *SHORT]
    done = run_job("sft", *argv, "--run", run.path)
    assert done.returncode == 0, done.stderr
    return run, argv, done.stdout


@pytest.mark.slow
def test_a_finished_run(sft):
    run, _, out = sft
    provenance = run.provenance()
    assert provenance["status"] == "finished" and provenance["steps"] == 6 and provenance["tokens"] > 0
    assert len(provenance["template_sha256"]) == 64 and len(provenance["model_sha256"]) == 64
    assert provenance["train"]["learning_rate"] == 1e-3  # effective values of all settings
    assert len(losses(run)) == 6 and losses(run)[-1] < losses(run)[0]
    assert checkpoint.steps(run) == [4, 6]
    assert "step 6/6" in out and "Next:" in out and "jobs/eval.py" in out
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(run.model_dir())
    assert AutoTokenizer.from_pretrained(run.model_dir()).chat_template


@pytest.mark.slow
def test_resume_of_a_finished_run_says_so(sft):
    run, argv, _ = sft
    done = run_job("sft", *argv, "--resume", run.path)
    assert done.returncode == 0 and "already finished" in done.stdout


def harm(file: str, how: str) -> None:
    with open(file, "r+b") as f:
        if how == "truncate":
            f.truncate(os.path.getsize(file) // 2)
        else:
            f.seek(os.path.getsize(file) // 2)
            byte = f.read(1)[0]
            f.seek(-1, 1)
            f.write(bytes([byte ^ 1]))


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["export", "last two checkpoints"])
def test_resume_ends_in_the_same_bits(sft, lost, local_ray, tmp_path):
    """Resumes a copy of the run elsewhere: a finished one with a flipped bit in model/, and one as a kill leaves it, with a
    truncated newest checkpoint."""
    original, _argv, _ = sft
    run = Run(tmp_path / "copy")
    shutil.copytree(original.path, run.path)
    if lost == "export":
        harm(run.at("model/model.safetensors"), "flip")
    else:
        run.remove("model")
        run.write_json("provenance.json", {"status": "running"})
        harm(run.at("checkpoints/checkpoint-6/model.safetensors"), "truncate")
    done = run_job("sft", "--resume", run.path, env=local_ray)
    assert done.returncode == 0, done.stderr
    if lost == "export":
        assert (
            "model.safetensors is corrupt: its SHA-256 is not the one recorded; it is rebuilt from checkpoint-6"
            in done.stdout
        )
    assert ("checkpoint-6 refused: model.safetensors is truncated" in done.stdout + done.stderr) is (lost != "export")
    assert checkpoint.steps(run) == [4, 6] and not [n for n in run.folders("checkpoints") if n.startswith("damaged")]
    was, p = original.provenance(), run.provenance()
    assert p["model_sha256"] == was["model_sha256"] and integrity.damage(run) is None and p["status"] == "finished"
    assert losses(run) == losses(original)
    # Totals of the whole run, though this attempt trained for two steps or none.
    assert p["train_loss"] == was["train_loss"] == pytest.approx(sum(losses(run)) / 6)
    assert [r["train_loss"] for r in run.metrics() if "train_loss" in r] == [p["train_loss"]]
    assert p["tokens"] == was["tokens"] and p["tokens_per_second"] == pytest.approx(
        p["tokens"] / p["seconds"]["train"], rel=1e-3
    )
    trained = was["seconds"]["train"] if lost == "export" else was["seconds"]["train"] / 2
    assert p["seconds"]["train"] > trained and p["seconds"]["load"] > was["seconds"]["load"] and p["starts"] == 2
    assert p["seconds"]["total"] == pytest.approx(sum(v for k, v in p["seconds"].items() if k != "total"))


@pytest.mark.slow
def test_sigterm_is_one_message_and_the_run_goes_on(sft, tmp_path):
    original, argv, _ = sft
    run = Run(tmp_path / "run")
    log = tmp_path / "log"
    with log.open("w") as f:
        process = subprocess.Popen(
            [warm.python(), "jobs/sft.py", *argv, "--run", run.path], cwd=REPO, stdout=f, stderr=f,
            env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        )  # fmt: skip
    while not run.fs.exists(run.at("checkpoints/checkpoint-2/DONE.json")):
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=PATIENCE) == 143
    said = log.read_text()
    assert f"Terminated. Continue with: python jobs/sft.py --resume {run.path}" in said
    assert "Traceback" not in said and "SIGTERM" not in said and "***" not in said, said
    p = run.provenance()
    assert p["status"] == "interrupted" and p["attempts"][-1]["ended"] == "interrupted"
    done = run_job("sft", "--resume", run.path)
    assert done.returncode == 0, done.stderr
    first, second = run.provenance()["attempts"]
    assert second["ended"] == "finished" and run.provenance()["status"] == "finished"
    assert run.provenance()["seconds"]["total"] == pytest.approx(first["seconds"] + second["seconds"], abs=1)
    assert run.provenance()["seconds"]["restarts"] > 0
    assert run.provenance()["model_sha256"] == original.provenance()["model_sha256"]


@pytest.mark.slow
def test_lora_dpo_from_a_run_then_its_model_and_adapter_load(sft, pairs_file, local_ray, tmp_path):
    parent, _, _ = sft
    run = Run(tmp_path / "dpo")
    argv = ["--model.base", parent.path, "--data.source", pairs_file, *SHORT, "--run", run.path]
    done = run_job(
        "dpo",
        *argv,
        "--model.adapter",
        "lora",
        "--model.peft.r",
        "4",
        "--model.peft.target_modules",
        "all-linear",
        "--train.report_to",
        "tensorboard",
        env=local_ray,
    )
    assert done.returncode == 0, done.stderr
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(run.at("tensorboard")).Reload()
    assert [e.value for e in board.Scalars("train/loss")] == pytest.approx(losses(run))
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(run.model_dir(), dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(parent.model_dir(), dtype=torch.float32)
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        before = base(ids).logits
        beside = PeftModel.from_pretrained(base, run.at("adapter"))(ids).logits
        after = merged(ids).logits
    assert (after - before).abs().max() > 1e-3
    assert torch.allclose(after, beside, atol=3e-2)  # merged weights are stored in bf16 if the CPU supports it
    assert run.provenance()["parent_sha256"] == f"run:{parent.provenance()['model_sha256']}"
    assert run.provenance()["template_sha256"] == parent.provenance()["template_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["4bit", pytest.param("8bit", marks=pytest.mark.soak)])
def test_quantized_base_trains_and_model_is_plain(bits, tiny_model, chats_file, local_ray, tmp_path):
    run = Run(tmp_path / "qlora")
    argv = [
        "--model.base",
        tiny_model,
        "--data.source",
        chats_file,
        *SHORT,
        "--train.learning_rate",
        "1e-2",
        "--data.heldout_fraction",
        "0",
        "--run",
        run.path,
    ]
    done = run_job(
        "sft",
        *argv,
        "--model.adapter",
        "lora",
        "--model.peft.target_modules",
        "all-linear",
        "--model.quantization",
        bits,
        env=local_ray,
    )
    assert done.returncode == 0, done.stderr
    assert losses(run)[-1] < losses(run)[0]
    assert "quantization_config" not in json.loads(run.read_text("model/config.json"))
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(run.model_dir())


@pytest.mark.slow
def test_reward_model_on_s3_is_killed_and_resumed(s3_server, tiny_model, pairs_file, tmp_path):
    """The run is on an S3 server; the driver and all of its Ray processes are killed after step 3."""
    import psutil

    env = s3_environment(s3_server)
    os.environ.update(env)
    argv = ["--model.base", tiny_model, "--data.source", pairs_file, *SHORT, "--scale.precision", "fp32"]
    whole, cut = Run(f"s3://runs/{tmp_path.name}/whole"), Run(f"s3://runs/{tmp_path.name}/cut")
    done = run_job("reward", *argv, "--run", whole.path, env=env)
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen(
        [warm.python(), "jobs/reward.py", *argv, "--run", cut.path],
        cwd=REPO,
        env=os.environ | env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not any(r["step"] >= 3 for r in cut.metrics()):
        assert process.poll() is None
        time.sleep(0.5)  # each probe is work for this process and the server, beside the job
    warm.kill(psutil.Process(process.pid))
    process.wait()
    assert not cut.finished()
    done = run_job("reward", "--resume", cut.path, env=env)
    assert done.returncode == 0, done.stderr
    assert cut.provenance()["model_sha256"] == whole.provenance()["model_sha256"]
    assert losses(cut) == losses(whole)
    from transformers import AutoModelForSequenceClassification

    assert AutoModelForSequenceClassification.from_pretrained(cut.model_dir()).num_labels == 1


@pytest.mark.slow
@pytest.mark.parametrize("logging", ["1", "50"])
def test_diverging_run_stops_with_the_cause_and_keeps_what_is_finite(
    logging, tiny_model, chats_file, local_ray, tmp_path
):
    """Also if it logs more rarely than it saves, or never."""
    argv = ["--model.base", tiny_model, "--data.source", chats_file, *SHORT, "--run", str(tmp_path / "run")]
    argv += ["--train.save_steps", "1", "--train.save_total_limit", "1", "--train.logging_steps", logging]
    argv += ["--train.learning_rate", "9e18", "--train.max_grad_norm", "0", "--scale.precision", "fp32"]
    done = run_job("sft", *argv, env=local_ray)
    assert done.returncode == 1
    assert any(why in done.stderr for why in ("is nan", "is inf", "holds NaN or infinity at step"))
    assert "train.learning_rate" in done.stderr and "--resume" in done.stderr
    run = Run(tmp_path / "run")
    assert run.provenance()["status"] == "failed" and not run.fs.exists(run.at("model"))
    (kept,) = checkpoint.steps(run)
    assert checkpoint.latest(run) == (kept, []) and f"Last whole checkpoint: step {kept}" in done.stderr
    for values in load_file(run.at(f"checkpoints/checkpoint-{kept}/model.safetensors")).values():
        assert values.isfinite().all()


@pytest.mark.slow
def test_job_submission(sft, pairs_file, tmp_path):
    """ray job submit of this folder to an existing cluster."""
    parent, _, _ = sft
    run = Run(tmp_path / "submitted")
    import psutil

    ray = f"{os.path.dirname(sys.executable)}/ray"
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    # As on a machine where a job has run before: Ray's token exists, and a head started later requires it.
    env = {k: v for k, v in env.items() if not k.startswith("RAY_AUTH")} | {"HOME": str(tmp_path)}
    subprocess.run([ray, "get-auth-token", "--generate"], env=env, check=True, capture_output=True)
    env["PATH"] = f"{os.path.dirname(sys.executable)}{os.pathsep}{env['PATH']}"  # `python` on the node is this one
    # The agent, without which no job is accepted, doesn't look for a free port if another Ray has its default one.
    dashboard, agent = free_port(), free_port()
    ports = ["--port", "0", "--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(agent)]
    command = [ray, "start", "--head", "--block", "--num-cpus", "2", *ports]
    head = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    try:
        address = ["--address", f"http://127.0.0.1:{dashboard}"]
        deadline = time.time() + PATIENCE
        submit = [ray, "job", "submit", *address]
        wait_for_port(agent, head)  # each probe costs seconds of a core
        probe, without = [*submit, "--", "true"], env
        env = env | {"RAY_AUTH_MODE": "token"}
        while (
            done := subprocess.run(probe, env=env, capture_output=True, text=True)
        ).returncode:  # the agent starts last
            assert head.poll() is None and time.time() < deadline, done.stderr[-3000:]
            time.sleep(1)
        refused = subprocess.run(probe, env=without, capture_output=True, text=True)
        assert refused.returncode and "Authentication required" in refused.stdout + refused.stderr
        argv = ["--model.base", parent.path, "--data.source", pairs_file, *SHORT, "--run", run.path]
        command = [*submit, "--working-dir", ".", "--", "python", "jobs/dpo.py", *argv]
        done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert run.finished() and run.provenance()["steps"] == 6
    finally:  # `ray stop` would stop every Ray on this machine
        mine = [head, *psutil.Process(head.pid).children(recursive=True)] if head.poll() is None else []
        for p in mine:
            p.kill()
        head.wait()
