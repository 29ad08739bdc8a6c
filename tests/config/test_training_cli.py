"""Configs and command lines: which are accepted, and that every mistake names its key before anything starts."""

import json
import subprocess
import sys
import time

import pytest

from cluster.estimate.workload import stage, stages
from lib import errors
from lib.stage import training_cli
from tests.conftest import REPO


def parse(*argv: str):
    return training_cli.parse(stage("dpo"), list(argv))


def test_command_line_wins_over_file_which_wins_over_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "run: runs/x\nmodel: {adapter: lora, peft: {r: 4, target_modules: all-linear}}\ntrain: {beta: 0.3, learning_rate: 5e-7}\n"
    )
    job = parse("--config", str(path), "--train.beta", "0.05", "--scale.workers", "2").job
    assert job.run == "runs/x" and job.stage == "dpo"
    assert job.train == {"beta": 0.05, "learning_rate": 5e-7}  # only the given keys: TRL fills in the rest
    assert job.model.peft == {"r": 4, "target_modules": "all-linear"}
    assert job.scale.workers == 2 and job.scale.global_batch == 32


def test_peft_holds_the_fields_of_the_adapters_config_class(tmp_path):
    """Those in a file are left out with a note if an option replaces the adapter by one of another class, or by none."""
    path = tmp_path / "c.yaml"
    path.write_text("model: {adapter: lora, peft: {r: 4}}\n")
    same = parse("--config", str(path), "--model.adapter", "dora")
    assert same.job.model.peft == {"r": 4} and not same.notes
    other = parse("--config", str(path), "--model.adapter", "ia3", "--model.peft.feedforward_modules", "[down_proj]")
    assert other.job.model.peft == {"feedforward_modules": ["down_proj"]}
    assert other.notes == ["model.peft: its keys are those of model.adapter: lora; ia3 starts from its own defaults"]
    none = parse("--config", str(path), "--model.adapter", "none")
    assert none.job.model.adapter == "none" and not none.job.model.peft
    assert none.notes == ["model.peft: its keys are left out, since --model.adapter is none"]
    with pytest.raises(errors.UsageError, match=r"model.peft.r is not a key of this job"):
        parse("--model.adapter", "ia3", "--model.peft.r", "4")


def test_round_trip():
    job = parse("--train.beta", "0.2", "--data.columns.question", "prompt").job
    assert type(job).from_dict(json.loads(json.dumps(job.to_dict()))) == job
    assert job.data.columns == {"question": "prompt"}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--train.betta", "1"], ["train.betta", "train.beta"]),
        (["--scale.worker", "2"], ["scale.worker", "scale.workers"]),
        (["--train.beta", "strong"], ["train.beta", "float", "strong"]),
        (["--model.adapter", "lorra"], ["model.adapter", "lora", "lorra"]),
        (["--train.lr_scheduler_type", "cosin"], ["train.lr_scheduler_type", "cosine"]),
        (["--train.bf16", "true"], ["train.bf16", "scale.precision"]),
        (["--train.per_device_train_batch_size", "8"], ["scale.global_batch", "scale.micro_batch"]),
        (["--model.peft.rank", "8"], ["model.peft.rank"]),
        (["--config", "configs/dpoo.yaml"], ["--config", "configs/dpo.yaml"]),
    ],
)
def test_mistakes_name_the_key_and_the_nearest(argv, says, monkeypatch):
    monkeypatch.chdir(REPO)
    with pytest.raises(errors.UsageError) as e:
        parse(*argv)
    for word in says:
        assert word in str(e.value)


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        ("train: {betta: 1}", ["train.betta", "train.beta"]),
        ("trian: {beta: 1}", ["trian", "train"]),
        ("train: 3", ["train", "section"]),
        ("model: {peft: {rr: 3}}", ["model.peft.rr", "model.peft.r"]),
        ("a: [", ["not valid YAML"]),
        ("", ["holds no keys"]),
    ],
)
def test_mistakes_in_the_file_name_the_file(yaml, says, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml)
    with pytest.raises(errors.UsageError) as e:
        parse("--config", str(path))
    for word in [*says, str(path)]:
        assert word in str(e.value)


def test_every_config_in_the_repo_parses():
    for name, found in stages().items():
        job = training_cli.parse(found, ["--config", str(REPO / found.example)]).job
        assert (job.stage, job.makes) == (name, found.kind(job.train))


def test_schema_knows_our_keys_and_trl_s():
    schema = training_cli.schema(stages()["dpo"])
    assert schema["properties"]["train"]["properties"]["beta"]["default"] == 0.1
    assert "bf16" not in schema["properties"]["train"]["properties"]
    peft = {kind["title"]: kind["properties"] for kind in schema["properties"]["model"]["properties"]["peft"]["anyOf"]}
    assert peft["lora"]["r"]["type"] == "integer" and "feedforward_modules" in peft["ia3"] and "dora" not in peft
    assert "run directory" in schema["properties"]["model"]["properties"]["base"]["description"]


def test_driver_imports_nothing_heavy():
    """--help takes less than a second only as long as no driver module imports these."""
    code = (
        "import sys; sys.argv=['jobs/dpo.py','--help']; import runpy\n"
        "try: runpy.run_path('jobs/dpo.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch','trl','transformers','ray','datasets','scipy') if m in sys.modules])"
    )
    began = time.time()
    out = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert out.stdout.strip().endswith("[]"), out.stdout[-300:] + out.stderr
    assert "--train.beta" in out.stdout
    print(f"--help took {time.time() - began:.2f} s")
