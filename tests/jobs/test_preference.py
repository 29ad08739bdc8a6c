"""KTO, ORPO and SimPO as whole jobs: one worker or two, a LoRA adapter, and a resume from a checkpoint."""

import os
import shutil

import pytest

from lib.run import Run
from tests.conftest import run_job
from tests.stages import planned

COMMON = {
    "--model.adapter": "lora", "--model.peft.r": 4, "--model.peft.target_modules": "all-linear",
    "--train.max_steps": 6, "--train.save_steps": 2, "--train.logging_steps": 1, "--train.learning_rate": 1e-2,
    "--scale.global_batch": 8, "--scale.precision": "fp32",
}  # fmt: skip


def job(stage: str, ray: dict, run: Run, model: str, pairs: str, **scale) -> None:
    options = COMMON | {"--model.base": model, "--data.source": pairs, "--run": run.path}
    options |= {f"--scale.{k}": v for k, v in scale.items()}
    done = run_job(stage, *[word for option in options.items() for word in option], env=ray)
    assert done.returncode == 0, done.stdout + done.stderr


def logged(run: Run, key: str) -> list[float]:
    return [r[key] for r in run.metrics() if key in r]


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", ["kto", pytest.param("orpo", marks=pytest.mark.soak), pytest.param("simpo", marks=pytest.mark.soak)]
)
def test_two_workers_take_the_steps_of_one(stage, local_ray, tiny_model, pairs_file, tmp_path):
    one, two = Run(tmp_path / "one"), Run(tmp_path / "two")
    job(stage, local_ray, one, tiny_model, pairs_file, workers=1, micro_batch=8)
    job(stage, local_ray, two, tiny_model, pairs_file, workers=2, micro_batch=2)
    names = {"loss", "eval_loss", "rewards/chosen", "rewards/rejected"} | (
        {"kl", "eval_kl"} if stage == "kto" else set()
    )
    for name in names:
        assert logged(two, name) == pytest.approx(logged(one, name), rel=1e-3, abs=1e-5), name
    assert len(logged(one, "loss")) == 6 and logged(one, "loss")[-1] < logged(one, "loss")[0]
    assert stage != "kto" or max(logged(one, "kl")) > 1e-3
    assert two.provenance()["workers"] == 2 and os.path.exists(two.at("adapter/adapter_model.safetensors"))
    if stage != "kto":
        return
    cut = Run(tmp_path / "cut")
    shutil.copytree(two.path, cut.path)
    cut.remove("model")
    cut.write_json("provenance.json", {"status": "running"})
    shutil.rmtree(cut.at("checkpoints/checkpoint-6"))
    done = run_job(stage, "--resume", cut.path, env=local_ray)
    assert done.returncode == 0, done.stderr
    assert cut.provenance()["model_sha256"] == two.provenance()["model_sha256"]
    assert logged(cut, "loss") == logged(two, "loss") and logged(cut, "kl") == logged(two, "kl")


@pytest.mark.parametrize(
    ("stage", "words", "says"),
    [
        ("kto", ["--scale.global_batch", "1", "--scale.micro_batch", "1"], "scale.global_batch: KTO compares"),
        ("kto", ["--train.precompute_ref_log_probs", "true"], "train.precompute_ref_log_probs: kto also needs"),
        ("kto", ["--train.loss_type", "kot"], "train.loss_type: there is no kot. Known: kto, apo_zero_unpaired."),
        ("kto", ["--train.train_sampling_strategy", "group_by_length"], "train.train_sampling_strategy"),
        ("orpo", ["--train.sync_ref_model", "true"], "train.sync_ref_model"),
        ("orpo", ["--train.loss_type", "hinge"], "train.loss_type"),
        ("simpo", ["--train.loss_type", "hinge"], "train.loss_type"),
        ("simpo", ["--train.label_smoothing", "0.5"], "train.label_smoothing: must be at least 0 and below 0.5"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(stage, words, says, tiny_model, pairs_file, tmp_path):
    with pytest.raises(ValueError) as e:
        planned(
            stage, ["--model.base", tiny_model, "--data.source", pairs_file, "--run", str(tmp_path / "run"), *words]
        )
    assert says in str(e.value)


def test_answers_of_one_label_are_refused(tiny_model, tmp_path):
    file = tmp_path / "wanted.jsonl"
    file.write_text('{"prompt": "what is red?", "completion": "a lamp.", "label": true}\n' * 4)
    argv = [
        "--model.base",
        tiny_model,
        "--data.source",
        str(file),
        "--data.heldout_fraction",
        "0",
        "--run",
        str(tmp_path / "run"),
    ]
    with pytest.raises(ValueError, match=r"data.source: all 4 training answers are labelled true"):
        planned("kto", argv)


def test_pairs_are_planned_as_labelled_answers(tiny_model, pairs_file, tmp_path):
    options = ["--data.heldout_fraction", "0", "--run", str(tmp_path / "run"), "--dry-run"]
    lines = dict(planned("kto", ["--model.base", tiny_model, "--data.source", pairs_file, *options]).lines())
    assert lines["model sees"].startswith("128 answers: ") and lines["data"] == "64 answers are labelled true, 64 false"
