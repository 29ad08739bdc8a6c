"""jobs/pretrain.py from random weights on a local Ray."""

import json

import pytest

from lib.run import Run
from tests.conftest import WORDS, run_job

pytestmark = pytest.mark.slow


def test_a_run_from_random_weights_keeps_its_base_and_is_resumed(local_ray, tmp_path):
    file = tmp_path / "texts.jsonl"
    texts = [f"the {a} {b} is near the {c}." for a, b, c in zip(WORDS * 2, WORDS[5:] * 3, WORDS[7:] * 4, strict=False)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    run = Run(str(tmp_path / "run"))
    argv = {
        "run": run.path, "model.base": "none", "model.size": "4m", "model.vocab_size": 512, "data.source": file,
        "train.objective": "electra", "train.max_length": 12, "train.max_steps": 4, "train.save_steps": 2, "scale.global_batch": 8,
    }  # fmt: skip
    options = [str(text) for key, value in argv.items() for text in (f"--{key}", value)]
    done = run_job("pretrain", *options, env=local_ray | {"SHOESTRING_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr
    assert "none: ElectraForPreTraining with" in done.stdout and "tokens fill none and are left out" in done.stdout
    base, made = Run(run.at("base")), run.provenance()
    assert base.finished() and run.job()["model"]["base"] == base.path == made["parent"]
    assert made["parent_sha256"] == f"run:{base.provenance()['model_sha256']}" and made["steps"] == 4
    from transformers import ElectraForPreTraining

    _, found = ElectraForPreTraining.from_pretrained(run.model_dir(), output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]

    run.remove("model")  # is rebuilt from the last checkpoint, by the same command, without the cache
    again = run_job(
        "pretrain", *options, "--resume", run.path, env=local_ray | {"SHOESTRING_CACHE": str(tmp_path / "other")}
    )
    assert again.returncode == 0, again.stderr
    assert run.provenance()["model_sha256"] == made["model_sha256"]
