"""AdaLoRA: its regulariser is eq. 4 of the paper, once a step; ranks end at the budget; schedules that can't be are refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lib.config.job import Model
from lib.errors import UsageError
from lib.models import adalora, export
from lib.runtime.failure import StopTraining
from tests import stages
from tests.models.adapted import adapted


def trainer(base, source, folder, micro_batch=4, steps=4, **peft):
    model = Model(base, adapter="adalora", peft={"init_r": 4, "target_r": 2} | peft)
    train = {"max_steps": steps, "learning_rate": 0.02, "save_steps": 2, "logging_steps": 1}
    return adapted("sft", model, source, folder, train, micro_batch), model


def test_the_gradient_is_that_of_equation_4():
    p, q = (
        torch.tensor([[1.0, 2.0], [0.0, 1.0]], requires_grad=True),
        torch.tensor([[3.0, 1.0], [1.0, 0.0]], requires_grad=True),
    )
    one = torch.eye(2)
    loss = 0.5 * ((p.t() @ p - one).square().sum() + (q @ q.t() - one).square().sum())
    assert loss.item() == 0.5 * (0 + 2 * 2**2 + 4**2 + 9**2 + 2 * 3**2 + 0)
    loss.backward()
    wanted = p.grad.clone(), q.grad.clone()
    p.grad, q.grad = torch.ones(2, 2), torch.zeros(2, 2)
    adalora.add_orthogonality_gradient(p, q, 0.5)
    assert torch.allclose(p.grad, wanted[0] + 1) and torch.allclose(q.grad, wanted[1])


@pytest.mark.slow
def test_steps_are_the_same_in_other_micro_batches_and_after_a_resume_and_ranks_end_at_the_budget(
    tiny_model, chats_file, tmp_path
):
    made, model = trainer(tiny_model, chats_file, tmp_path, tfinal=2)
    made.train()
    cut, _ = trainer(tiny_model, chats_file, tmp_path / "cut", micro_batch=1, tfinal=2)
    cut.train()
    for (name, one), other in zip(made.model.named_parameters(), cut.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4), name
    assert made.state.log_history[0]["loss"] < 20  # eq. 4 is not in it: ln 1000 is 6.9

    resumed, _ = trainer(tiny_model, chats_file, tmp_path / "cut", micro_batch=1, tfinal=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut/checkpoint-2"))  # after the last allocation
    for (name, one), other in zip(cut.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name

    export.export(made, model, tmp_path / "export")
    ranks = json.loads((tmp_path / "export/adapter/adapter_config.json").read_text())["rank_pattern"]
    kept = {name: sum(triplets) for name, triplets in ranks.items()}
    assert sum(kept.values()) == 2 * len(kept) and len(set(kept.values())) > 1
    weights = load_file(tmp_path / "export/adapter/adapter_model.safetensors")
    assert {n.removeprefix("base_model.model."): len(w) for n, w in weights.items() if n.endswith("lora_E")} == kept


def test_the_loss_is_without_the_regulariser(tiny_model, chats_file, tmp_path):
    made, _ = trainer(tiny_model, chats_file, tmp_path)
    ids = torch.arange(2, 12)[None]
    with made.model.disable_adapter():
        base = made.model(input_ids=ids, labels=ids).loss
    assert torch.equal(made.model(input_ids=ids, labels=ids).loss, base)


def test_schedules_that_cannot_be_are_refused(tiny_model, chats_file, tmp_path):
    argv = ["--model.base", tiny_model, "--data.source", chats_file, "--run", str(tmp_path / "run")]
    argv += ["--model.adapter", "adalora"]
    for given, message in [
        (["--train.max_steps", "4", "--model.peft.tfinal", "4"], "leave none of the job's 4"),
        (["--model.peft.tinit", "1000"], "leave none of the job's"),
        (["--model.peft.total_step", "4"], "model.peft.total_step: the number of steps follows from train.max_steps"),
        (["--model.peft.r", "4"], "model.peft.r: AdaLoRA doesn't read it. Set init_r"),
        (["--model.peft.init_r", "8"], "model.peft.init_r: 8 must be above target_r, 8"),
        (["--scale.workers", "2", "--scale.strategy", "zero1"], "scale.strategy: adalora"),
        (["--model.peft.target_rank", "4"], "target_r"),
    ]:
        with pytest.raises(UsageError) as refused:
            stages.planned("sft", [*argv, *given])
        assert message in str(refused.value)
    late, _ = trainer(tiny_model, chats_file, tmp_path, steps=2, tinit=2)  # a worker whose driver didn't know the steps
    with pytest.raises(StopTraining, match="leave none of the job's 2"):
        late.train()
