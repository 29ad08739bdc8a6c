"""Distillation: the loss equals its formula, a teacher equal to the student leaves only the loss on tokens, layers are removed;
and whole jobs."""

import math

import pytest
import torch

from lib.errors import UsageError
from lib.methods.distillation import trainer
from lib.run import Run
from tests.conftest import run_job
from tests.stages import planned

TEACHER, STUDENT = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0], [3.0, 0.0, 0.0]])


def plain(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergences_are_their_formulas(temperature):
    soft = [(x / temperature).softmax(-1).double().tolist() for x in (TEACHER, STUDENT)]
    p, q = ((x / temperature).log_softmax(-1) for x in (TEACHER, STUDENT))
    get = lambda kind, **more: trainer.divergence(p, q, kind, **more).tolist()  # noqa: E731
    pairs = list(zip(*soft, strict=True))
    assert get("forward_kl") == pytest.approx([plain(p, q) for p, q in pairs], abs=1e-6)
    assert get("reverse_kl") == pytest.approx([plain(q, p) for p, q in pairs], abs=1e-6)
    for beta in (0.5, 0.2):
        mixed = [[beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)] for p, q in pairs]
        want = [beta * plain(p, m) + (1 - beta) * plain(q, m) for (p, q), m in zip(pairs, mixed, strict=True)]
        assert get("jsd", beta=beta) == pytest.approx(want, abs=1e-6)


def test_the_first_and_the_last_layer_stay(tiny_model):
    """Kept layers compute the same: with all layers kept nothing changes, and the cache still works."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_model)
    config.num_hidden_layers, config.layer_types = 5, None
    torch.manual_seed(0)
    deep = AutoModelForCausalLM.from_config(config).eval()
    layers = list(deep.model.layers)
    ids = torch.tensor([[5, 6, 7, 8]])
    whole = deep(ids).logits
    assert torch.equal(trainer.keep_layers(deep, 5)(ids).logits, whole)
    small = trainer.keep_layers(deep, 3)
    assert list(small.model.layers) == [layers[0], layers[2], layers[4]] and small.config.num_hidden_layers == 3
    cached = small.generate(ids, max_new_tokens=6, do_sample=False, use_cache=True)
    assert torch.equal(cached, small.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False))
    with pytest.raises(ValueError, match=r"train.keep_layers: must be from 2 to 3"):
        trainer.keep_layers(small, 4)


def job(tmp_path, student: str, teacher: str, *more: str, env: dict | None = None):
    argv = ["--model.base", student, "--train.teacher", teacher, "--run", str(tmp_path / "run"), "--data.limit", "32"]
    argv += [
        "--data.heldout_limit",
        "8",
        "--train.max_steps",
        "4",
        "--train.logging_steps",
        "1",
        "--train.max_length",
        "512",
    ]
    argv += [
        "--scale.global_batch",
        "4",
        "--scale.micro_batch",
        "2",
        "--train.save_steps",
        "2",
        "--train.report_to",
        "none",
    ]
    return run_job("distill", *argv, *more, env=env)


@pytest.mark.slow
def test_a_student_that_is_its_teacher_has_nothing_to_learn_but_the_tokens(tiny_model, local_ray, tmp_path):
    more = ["--scale.precision", "fp32", "--train.hard_weight", "0"]
    done = job(tmp_path, tiny_model, tiny_model, *more, env=local_ray)
    assert done.returncode == 0, done.stderr[-2000:]
    first = Run(str(tmp_path / "run")).metrics()[0]
    assert first["soft_loss"] == pytest.approx(0, abs=1e-6) and first["loss"] == pytest.approx(0, abs=1e-6)
    assert first["hard_loss"] == pytest.approx(math.log(1024), rel=0.05)  # random weights, 1,024 tokens


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--train.teacher", "./stf"], "train.teacher: there is no run or model folder"),
        (["--train.divergence", "kl"], "train.divergence"),
        (["--train.keep_layer", "2"], r"train.keep_layer is not a key.*train.keep_layers"),
    ],
)
def test_wrong_requests(tiny_model, tmp_path, argv, says):
    options = ["--model.base", tiny_model, "--train.teacher", tiny_model, "--run", str(tmp_path / "run"), *argv]
    with pytest.raises(UsageError, match=says):
        planned("distill", options)
    assert not (tmp_path / "run").exists()


def test_no_teacher(tiny_model, tmp_path):
    with pytest.raises(UsageError, match=r"train\.teacher: name a model"):
        planned("distill", ["--model.base", tiny_model, "--run", str(tmp_path / "run")])


@pytest.mark.slow
def test_a_teacher_with_other_tokens(tiny_model, local_ray, tmp_path):
    import shutil

    from transformers import AutoTokenizer

    other = shutil.copytree(tiny_model, tmp_path / "other")
    tok = AutoTokenizer.from_pretrained(tiny_model)
    tok.add_tokens(["zebra"])
    tok.save_pretrained(other)
    done = job(tmp_path, tiny_model, str(other), env=local_ray)
    assert done.returncode == 1 and "has other tokens than" in done.stderr and "sequence-level" in done.stderr


@pytest.mark.slow
def test_rows_whose_answers_are_all_cut_off(tiny_model, tmp_path):
    done = job(tmp_path, tiny_model, tiny_model, "--train.max_length", "20")
    assert done.returncode == 2 and "train.max_length: nothing to learn is within 20 tokens" in done.stderr


@pytest.mark.slow
@pytest.mark.soak
def test_two_workers_take_the_steps_of_one(tiny_model, local_ray, tmp_path):
    losses = []
    for n in (1, 2):
        (folder := tmp_path / str(n)).mkdir()
        done = job(folder, tiny_model, tiny_model, "--train.keep_layers", "2", "--scale.workers", str(n), "--scale.precision", "fp32", "--train.divergence", "jsd", "--train.soft_temperature", "2", env=local_ray)  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        losses.append([r["loss"] for r in Run(str(folder / "run")).metrics() if "loss" in r])
    assert losses[0] == pytest.approx(losses[1], abs=2e-5) and len(losses[0]) == 4
