"""Quantisation-aware training: the trained model is the one that is written, the job resumes to the same bits, and incompatible
settings are rejected."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lib.errors import UsageError
from lib.models import quantized_formats
from lib.models.quantization import qat, schemes
from lib.run import Run
from tests.conftest import run_job
from tests.stages import planned

IDS = torch.arange(5, 165).reshape(2, 80)
KINDS = ("int8", "w4a16")


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("method", KINDS)
def test_what_trains_is_what_is_written(method, tiny_model, tmp_path):
    """With rounded weights, the loss has gradients for the unrounded ones, and the written model computes the same as the trained one."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    plain, names = logits(model), list(model.state_dict())
    parameters = list(model.parameters())
    qat.prepare(model, method)
    assert list(model.state_dict()) == names
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()(IDS, labels=IDS).loss.backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())
    optimizer.step()
    rounded = logits(model)
    model.save_pretrained(tmp_path / "plain")
    schemes.METHODS[method].run(tmp_path / "plain", tmp_path / "q", None)
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype=torch.float32)), rounded, atol=2e-5, rtol=0
    )
    assert (rounded - plain).norm() > 0.004 * plain.norm()


def words(tiny_model: str, run: str, *more: str) -> list[str]:
    base = ["--model.base", tiny_model, "--run", run, "--data.limit", "32", "--data.heldout_limit", "8"]
    base += [
        "--train.max_length",
        "512",
        "--train.max_steps",
        "4",
        "--train.save_steps",
        "2",
        "--train.logging_steps",
        "1",
    ]
    base += ["--train.learning_rate", "1e-3", "--scale.global_batch", "4", "--scale.micro_batch", "2"]
    return [*base, "--scale.precision", "fp32", *more]


@pytest.mark.parametrize(
    ("stage", "more", "says"),
    [
        ("sft", ["--model.qat", "int3"], r"model.qat.*int3"),
        ("sft", ["--model.qat", "w4a16", "--model.adapter", "lora"], r"model.qat: .*Set model.adapter: none"),
        (
            "sft",
            ["--model.qat", "w4a16", "--scale.strategy", "zero1"],
            r"model.qat: w4a16 runs with scale.strategy: ddp",
        ),
        ("reward", ["--model.qat", "int8"], r"model.qat: a reward model isn't quantised"),
    ],
)
def test_wrong_requests(stage, more, says, tiny_model, tmp_path):
    with pytest.raises(UsageError, match=says):
        planned(stage, words(tiny_model, str(tmp_path / "run"), *more))


@pytest.mark.slow
@pytest.mark.soak
def test_a_job_that_lost_its_end_ends_with_the_same_bits(tiny_model, local_ray, tmp_path):
    run = Run(str(tmp_path / "run"))
    done = run_job("sft", *words(tiny_model, run.path, "--model.qat", "w4a16", "--scale.workers", "2"), env=local_ray)
    assert done.returncode == 0, done.stdout + done.stderr
    assert quantized_formats.found(run.path) == "compressed-tensors"
    loss = [row["eval_loss"] for row in run.metrics() if "eval_loss" in row][-1]
    whole = run.provenance()["model_sha256"]
    for part in ("checkpoints/checkpoint-4", "model"):
        run.remove(part)
    run.write_json("provenance.json", run.provenance() | {"status": "running", "model_sha256": None})
    done = run_job("sft", "--resume", run.path, env=local_ray)
    assert done.returncode == 0 and "from step 2" in done.stdout, done.stdout + done.stderr
    assert run.provenance()["model_sha256"] == whole
    assert [row["eval_loss"] for row in run.metrics() if "eval_loss" in row][-1] == loss
    assert logits(AutoModelForCausalLM.from_pretrained(run.at("model"))).isfinite().all()
