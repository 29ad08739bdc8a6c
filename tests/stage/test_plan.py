"""Some twenty wrong jobs give errors that name the key, before Ray or torch are imported."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cluster.estimate.workload import stage as declared
from cluster.estimate.workload import stages
from lib import errors
from lib.run import Run
from lib.stage.plan import Plan
from tests.conftest import REPO, run_job, sign
from tests.stages import planned


@pytest.fixture
def good(tiny_model, pairs_file, tmp_path, monkeypatch):
    """Arguments of a valid DPO job, and the folder of its run."""
    monkeypatch.setattr("lib.runtime.hardware.local_gpus", lambda: 0)  # for the messages of a machine without a GPU
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return ["--model.base", tiny_model, "--data.source", pairs_file, "--run", str(tmp_path / "runs" / "dpo")]


def make(argv: list[str]) -> Plan:
    return planned("dpo", argv)


WRONG = [
    # (options added to a valid command, texts that the message must contain)
    (["--train.betta", "0.1"], ["train.betta", "train.beta"]),
    (["--model.adaptor", "lora"], ["model.adaptor", "model.adapter"]),
    (["--train.learning_rate", "fast"], ["train.learning_rate", "float"]),
    (["--scale.strategy", "zero4"], ["scale.strategy", "zero3"]),
    (["--train.learning_rate", "-1"], ["train.learning_rate", "above 0"]),
    (["--train.max_steps", "0"], ["train.max_steps", "train.num_train_epochs"]),
    (["--train.save_strategy", "no"], ["train.save_strategy", "preemption"]),
    (["--train.report_to", "tensorbord"], ["train.report_to", "tensorboard"]),
    (["--train.trust_remote_code", "true"], ["train.trust_remote_code"]),
    (["--train.hub_token", "hf_x"], ["train.hub_token", "HF_TOKEN"]),
    *[(["--train.save_total_limit", n], ["train.save_total_limit: must be at least 1"]) for n in ("-1", "0", "-7")],
    (["--train.train_sampling_strategy", "group_by_length"], ["train.train_sampling_strategy", "random"]),
    (["--train.train_sampling_strategy", "batch_rebalance"], ["train.train_sampling_strategy", "resume"]),
    (["--train.save_only_model", "true"], ["train.save_only_model"]),
    (["--train.load_best_model_at_end", "true"], ["train.load_best_model_at_end", "resumed"]),
    (["--eval.tasks", "[preference_accuracy]"], ["eval.tasks", "reward"]),
    (["--train.gradient_accumulation_steps", "4"], ["scale.global_batch"]),
    (["--data.source", "nowhere.jsonl"], ["data.source", "nowhere.jsonl"]),
    (["--data.columns.questoin", "prompt"], ["data.columns", "questoin"]),
    (["--data.format", "alpacca"], ["data.format", "alpaca"]),
    (["--data.heldout_fraction", "1.5"], ["data.heldout_fraction"]),
    (["--model.base", "runs/never-made/sft"], ["model.base"]),
    (["--model.chat_template", "chatml.jinja"], ["model.chat_template", "chatml.jinja"]),
    (["--model.peft.r", "8"], ["model.peft", "model.adapter: lora"]),
    (["--model.quantization", "4bit"], ["model.quantization", "model.adapter: lora"]),
    (["--model.quantization", "4bit", "--model.adapter", "ia3"], ["model.quantization: ia3", "lora, dora, rslora"]),
    (["--model.adapter", "dora", "--model.peft.use_dora", "false"], ["model.peft.use_dora", "model.adapter: dora"]),
    (["--model.adapter", "lora", "--model.peft.r", "0"], ["model.peft.r"]),
    (["--scale.workers", "2", "--scale.global_batch", "7"], ["scale.global_batch", "6 or 8"]),
    (["--scale.workers", "0"], ["scale.workers", "at least 1"]),
    (["--scale.workers", "64", "--scale.global_batch", "64"], ["scale.workers", "CPU cores"]),
    (["--scale.strategy", "zero2"], ["scale.strategy", "scale.workers: 2"]),
    (["--scale.offload", "true"], ["scale.offload", "zero2"]),
    (["--scale.device", "gpu"], ["scale.device"]),
    (["--scale.precision", "fp16"], ["scale.precision", "GPU"]),
    (["--scale.min_workers", "3"], ["scale.min_workers", "between 1"]),
    (["--scale.workers", "2", "--scale.min_workers", "1", "--scale.strategy", "fsdp"], ["scale.min_workers", "ddp"]),
    (["--eval.tasks", "[dem]"], ["eval.tasks", "demo"]),
]


@pytest.mark.parametrize(("typed", "says"), WRONG, ids=[" ".join(t) for t, _ in WRONG])
def test_wrong(typed, says, good):
    with pytest.raises(ValueError) as e:
        make(good + typed)
    for word in says:
        assert word in str(e.value), str(e.value)


def test_right(good):
    found = make(good)
    assert found.check.rows + found.check.heldout_rows == 64
    assert found.job.model.base == good[1]


def test_a_reward_run_is_no_language_model(good, runs, tmp_path):
    """It would load as one, with an untrained head."""
    with pytest.raises(ValueError, match=r"model.base: .* is a reward model"):
        make([*good, "--model.base", runs["reward"]])
    distill = ["--model.base", runs["sft"], "--train.teacher", runs["reward"], "--run", str(tmp_path / "run")]
    with pytest.raises(ValueError, match=r"train.teacher: .* is a reward model\. Name a language model"):
        planned("distill", distill)
    pairs = ["--model.base", runs["reward"], "--data.source", good[3], "--run", str(tmp_path / "run")]
    planned("reward", pairs)


def test_every_problem_is_listed_at_once(good):
    with pytest.raises(errors.UsageError) as e:
        make([*good, "--scale.device", "gpu", "--train.learning_rate", "-1", "--data.source", "nowhere.jsonl"])
    assert len(str(e.value).splitlines()) >= 3


def test_data_of_the_wrong_kind(good, chats_file):
    with pytest.raises(errors.UsageError, match=r"data\.source.*preference"):
        make([*good, "--data.source", chats_file])


def test_a_run_that_is_not_finished_is_no_base(good, tmp_path):
    Run(tmp_path / "sft").write_text("job.yaml", "stage: sft\n")
    Run(tmp_path / "sft").write_json("provenance.json", {"status": "running"})
    with pytest.raises(errors.UsageError, match=r"model\.base: .*no model yet"):
        make([*good, "--model.base", str(tmp_path / "sft")])
    with pytest.raises(errors.UsageError, match=r"model\.base: there is no run .*/sftt\. Nearest: .*/sft"):
        make([*good, "--model.base", str(tmp_path / "sftt")])


def started(planned: Plan) -> Run:
    run = Run(planned.job.run)
    run.write_text("job.yaml", yaml.safe_dump(planned.job.to_dict(), sort_keys=False))
    run.write_json("provenance.json", {"status": "failed"})
    return run


def test_an_existing_run_is_never_overwritten(good):
    run = started(make(good))
    with pytest.raises(errors.UsageError, match=r"already holds a run.*--resume"):
        make(good)
    assert make(["--resume", run.path]).job == make([*good[:-2], "--resume", run.path]).job


def test_resume_with_another_configuration_says_what_differs(good):
    run = started(make(good))
    with pytest.raises(errors.UsageError, match=r"train\.beta: the run has None, this configuration 0\.5"):
        make([*good[:-2], "--train.beta", "0.5", "--resume", run.path])
    make([*good[:-2], "--scale.workers", "2", "--resume", run.path])  # moves no sample to another step


def test_resume_on_other_rows_or_weights_is_refused(good, tmp_path, pairs_file):
    mine = tmp_path / "mine.jsonl"
    mine.write_text(Path(pairs_file).read_text())
    planned = make([*good, "--data.source", str(mine)])
    run = started(planned)
    known = {"data": planned.check.summary(), "parent_sha256": planned.identities["model.base"]}
    run.write_json("provenance.json", {"status": "failed"} | known)
    make(["--resume", run.path])
    run.write_json("provenance.json", {"status": "failed"} | known | {"parent_sha256": "run:other"})
    with pytest.raises(errors.UsageError, match=r"model\.base: its weights are not those.*run:other"):
        make(["--resume", run.path])
    run.write_json("provenance.json", {"status": "failed"} | known)
    mine.write_text("".join(mine.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(errors.UsageError, match=r"data\.source: its rows are not those"):
        make(["--resume", run.path])


def test_a_run_is_the_same_wherever_it_lies(good, tmp_path, pairs_file, tiny_model):
    """The run is moved, linked or copied; its base and its rows are elsewhere, with the same bytes."""
    run = started(make(good))
    copy = shutil.copytree(run.path, tmp_path / "copy")
    (tmp_path / "link").symlink_to(run.path)
    (tmp_path / "folder").symlink_to(tmp_path)
    for where in (copy, tmp_path / "link", tmp_path / "folder" / "runs" / "dpo"):
        assert Run(make(["--resume", str(where)]).job.run).job() == run.job()
    moved = shutil.move(run.path, tmp_path / "moved")
    planned = make(["--resume", str(moved)])
    assert planned.job.run == str(moved)
    rows = shutil.copy(pairs_file, tmp_path / "rows.jsonl")
    base = shutil.copytree(tiny_model, tmp_path / "base", copy_function=shutil.copy2)
    elsewhere = ["--resume", str(moved), "--data.source", str(rows), "--model.base", str(base)]
    with pytest.raises(
        errors.UsageError, match=r"data\.source: the run has"
    ):  # the hash of its rows was never recorded
        make(elsewhere)
    known = {"data": planned.check.summary(), "parent_sha256": planned.identities["model.base"]}
    Run(moved).write_json("provenance.json", {"status": "failed"} | known)
    assert make(elsewhere).job.data.source == str(rows)
    Path(rows).write_text("".join(Path(rows).read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(errors.UsageError, match=r"data\.source: the run has"):
        make(elsewhere)


def test_a_teacher_that_was_replaced_is_refused(runs, tmp_path, chats_file):
    """The teacher is replaced by another run of the same name between a kill and --resume."""
    teacher = shutil.copytree(runs["sft"], tmp_path / "teacher")
    words = ["--model.base", runs["dpo"], "--train.teacher", str(teacher), "--data.source", chats_file]

    def asked(*more):
        return planned("distill", [*words, *more])

    first = asked("--run", str(tmp_path / "run"))
    run, sha = started(first), first.identities
    assert sha["train.teacher"] == f"run:{Run(teacher).provenance()['model_sha256']}"
    recorded = {"parent_sha256": sha["model.base"], "identities": {"train.teacher": sha["train.teacher"]}}
    run.write_json("provenance.json", {"status": "running"} | recorded)
    asked("--resume", run.path)
    shutil.move(teacher, tmp_path / "old")
    shutil.copytree(runs["dpo"], teacher)
    with pytest.raises(errors.UsageError, match=r"train\.teacher: its weights are not those.*started with"):
        asked("--resume", run.path)
    words[3] = str(tmp_path / "old")
    assert asked("--resume", run.path).job.train["teacher"] == str(tmp_path / "old")


def test_a_finished_run_with_a_damaged_model_is_rebuilt(good, runs):
    run = started(make(good))
    run.put(Path(runs["dpo"], "model"), "model")
    run.write_json("provenance.json", {"status": "finished"})
    sign(run)
    assert make(["--resume", run.path]).finished
    run.remove("model/model.safetensors")
    planned = make(["--resume", run.path])
    assert not planned.finished
    assert planned.notes == [
        "model/model.safetensors is missing; it is rebuilt by training again: no checkpoint is whole"
    ]


def test_a_run_without_a_model_is_no_base(good, tmp_path):
    Run(tmp_path / "eval").write_text("job.yaml", "stage: eval\n")
    Run(tmp_path / "eval").write_json("provenance.json", {"status": "finished"})
    with pytest.raises(errors.UsageError, match=r"model\.base: .* is a run of jobs/eval\.py, which makes no model"):
        make([*good, "--model.base", str(tmp_path / "eval")])


def test_resume_of_what_is_no_run(good, tmp_path):
    with pytest.raises(errors.UsageError, match=r"--resume: .* is not a run"):
        make(["--resume", str(tmp_path)])
    run = started(make(good))
    with pytest.raises(errors.UsageError, match=r"made by jobs/dpo\.py, not by jobs/sft\.py"):
        planned("sft", ["--resume", run.path])


def test_tool_calls_need_a_template_that_writes_them(good, tmp_path):
    import json

    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
    }
    rows = [{"messages": [{"role": "user", "content": f"do {i}"}, call]} for i in range(20)]
    path = tmp_path / "tools.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(errors.UsageError, match=r"model\.chat_template: .* leaves out tool calls in 20 of 20 answers"):
        planned("sft", ["--model.base", good[1], "--data.source", str(path), "--run", str(tmp_path / "r")])


def test_the_command_refuses_within_two_seconds_and_starts_nothing(good, tmp_path):
    began = time.time()
    done = run_job("dpo", *good, "--scale.workers", "2", "--scale.global_batch", "7")
    took = time.time() - began
    assert done.returncode == 2 and "scale.global_batch" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
    print(f"refused in {took:.2f} s")


@pytest.mark.parametrize("stage", [s for s in stages() if s != "draft"])  # draft uses the data of configs/distill.yaml
def test_shipped_configurations_are_right(stage, good, tmp_path):
    config = REPO / declared(stage).example
    argv = ["--config", str(config), "--model.base", good[1], "--run", str(tmp_path / "r")]
    argv += ["--train.teacher", good[1]] if stage in ("distill", "prune") else []  # the quickstart's run
    argv += ["--model.size", "null", "--model.vocab_size", "null"] if stage == "pretrain" else []
    assert planned(stage, argv).check.heldout_rows == yaml.safe_load(config.read_text())["data"]["heldout_limit"]


@pytest.mark.parametrize("config", sorted((REPO / "configs/pretrain").glob("*.yaml")), ids=lambda file: file.stem)
def test_each_objective_has_a_configuration(config, tmp_path):
    argv = ["--config", str(config), "--run", str(tmp_path / "r"), "--model.size", "4m", "--data.limit", "300"]
    job = planned("pretrain", argv).job
    assert job.train["objective"] == config.stem and job.makes == declared("pretrain").makes[config.stem]


@pytest.mark.slow
@pytest.mark.parametrize("where", [["--run", "s3://runs/x"], ["--resume", "s3://runs/x"]])
def test_a_store_that_cannot_be_reached(good, where):
    env = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    done = run_job("dpo", *good[:-2], *where, env=env)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "store" in done.stderr and "AWS_ENDPOINT_URL" in done.stderr and "127.0.0.1:9" in done.stderr


@pytest.mark.slow
def test_dry_run_writes_nothing_and_imports_neither_torch_nor_ray_workers(good, tmp_path):
    code = (
        f"import sys; sys.argv=['jobs/dpo.py', '--dry-run', *{good!r}]; import runpy\n"
        "runpy.run_path('jobs/dpo.py', run_name='__main__')\n"
        "print([m for m in ('torch','trl','transformers','datasets') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert out.stdout.strip().endswith("[]") and "nothing was started" in out.stdout, out.stdout + out.stderr
    assert "⟧" in out.stdout  # rendered in its own process
    assert not (tmp_path / "runs").exists()
