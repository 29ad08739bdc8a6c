"""Every adapter of model.adapter: trains on a frozen base, resumes to the same bits, and exports what was trained."""

import math
import typing
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from lib.config.adapters import ADAPTERS, virtual_tokens
from lib.config.job import Model
from lib.models import export, merging, structure, unmerged
from tests import stages
from tests.models.adapted import adapted

SMALL = {
    "lora": {"r": 4}, "dora": {"r": 4}, "rslora": {"r": 4}, "pissa": {"r": 4}, "adalora": {"init_r": 4, "target_r": 3},
    "vera": {"r": 16}, "loha": {"r": 4}, "lokr": {"r": 4},
    "oft": {"oft_block_size": 16}, "miss": {"r": 4}, "parallel": {"r": 4}, "prompt": {"num_virtual_tokens": 3}, "p_tuning": {"num_virtual_tokens": 3},
    "prefix": {"num_virtual_tokens": 3}, "houlsby": {"r": 4}, "pfeiffer": {"r": 4},
}  # fmt: skip
"""{adapter: fields that fit a model 64 wide}"""
ON_QUANTIZED = [name for name, adapter in ADAPTERS.items() if adapter.quantized]


class Stop(TrainerCallback):
    """Ends training after a step, as a preemption does."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def trainer(adapter: str, base: str, source: str, folder: Path, quantization: str = "none", stage: str = "sft"):
    train = {"max_steps": 4, "learning_rate": 0.02, "save_steps": 2, "logging_steps": 1}
    model = Model(base, adapter=adapter, peft=SMALL.get(adapter, {}), quantization=quantization)
    return adapted(stage, model, source, folder, train), model


def trained_weights(made) -> dict:
    return {name: p.detach().clone() for name, p in made.model.named_parameters() if p.requires_grad}


def test_every_adapter_has_its_config():
    assert ["none", *ADAPTERS] == list(typing.get_args(typing.get_type_hints(Model)["adapter"]))


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [n for n, a in ADAPTERS.items() if n != "pissa" and not a.own and not a.soft])
def test_the_base_without_it_is_the_reference_model(adapter, tiny_model, pairs_file, tmp_path):
    """Before the first step both models are the same, so that DPO's loss is log 2."""
    made, _ = trainer(adapter, tiny_model, pairs_file, tmp_path, stage="dpo")
    made.train()
    first = next(row for row in made.state.log_history if "loss" in row)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and first["rewards/chosen"] == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_it_trains_resumes_exactly_and_exports_what_was_trained(adapter, tiny_model, chats_file, tmp_path):
    made, model = trainer(adapter, tiny_model, chats_file, tmp_path)
    before = trained_weights(made)
    frozen = {n: p.detach().clone() for n, p in made.model.named_parameters() if not p.requires_grad}
    made.train()
    whole = trained_weights(made)
    assert whole and not [n for n, w in whole.items() if torch.equal(w, before[n])]
    assert not [n for n, p in made.model.named_parameters() if n in frozen and not torch.equal(p, frozen[n])]

    interrupted, _ = trainer(adapter, tiny_model, chats_file, tmp_path / "again")
    interrupted.add_callback(Stop(2))
    interrupted.train()
    resumed, _ = trainer(adapter, tiny_model, chats_file, tmp_path / "again")
    resumed.train(resume_from_checkpoint=str(tmp_path / "again/checkpoint-2"))
    after = trained_weights(resumed)
    assert after.keys() == whole.keys() and all(torch.equal(w, whole[n]) for n, w in after.items())

    ids = merging.probe(made)
    ahead, row = virtual_tokens(model), ids.shape[1]
    said = merging.answers(made.model, ids)[-row:]
    export.export(made, model, tmp_path / "export")
    exported = unmerged.load(AutoModelForCausalLM, tmp_path / "export/model")
    assert type(exported).__name__ == "LlamaForCausalLM"
    tokens = AutoTokenizer.from_pretrained(tmp_path / "export/model")
    new = tokens.convert_tokens_to_ids([f"<|prompt_{k}|>" for k in range(ahead)])  # no answer can contain them
    others = [v for v in range(said.shape[1]) if v not in new]
    again = merging.answers(exported, torch.cat([torch.tensor([new], dtype=torch.long), ids], 1))[-row:]
    again, said = (one[:, others].log_softmax(-1) for one in (again, said))
    assert torch.allclose(again, said, atol=1e-4)
    assert not torch.allclose(
        merging.answers(AutoModelForCausalLM.from_pretrained(tiny_model), ids)[:, others], said, atol=1e-2
    )


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["vera", "ia3", "oft"])
def test_a_reward_models_head_is_exported_with_it(adapter, tiny_model, pairs_file, tmp_path):
    made, model = trainer(adapter, tiny_model, pairs_file, tmp_path, stage="reward")
    made.train()
    ids = merging.probe(made)
    said = merging.answers(made.model, ids)
    export.export(made, model, tmp_path / "export")
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export/model")
    assert torch.allclose(merging.answers(exported, ids), said, atol=1e-4)


def test_what_ln_tuning_would_lose_is_refused(tiny_model, pairs_file, chats_file, tmp_path):
    """By the checks before Ray, and by a worker whose driver had no copy of the base."""
    for stage, source, peft in (
        ("reward", pairs_file, []),
        ("sft", chats_file, ["--model.peft.modules_to_save", "[embed_tokens]"]),
    ):
        argv = ["--model.base", tiny_model, "--data.source", source, "--run", str(tmp_path / "run")]
        job = stages.planned(stage, [*argv, "--model.adapter", "ln_tuning", *peft]).job
        [problem] = structure.problems(job, False)
        assert "PEFT doesn't merge modules_to_save" in problem
    with pytest.raises(ValueError, match="PEFT doesn't merge modules_to_save"):
        trainer("ln_tuning", tiny_model, pairs_file, tmp_path, stage="reward")


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ON_QUANTIZED)
def test_it_trains_on_a_base_of_4_bits(adapter, tiny_model, chats_file, tmp_path):
    made, model = trainer(adapter, tiny_model, chats_file, tmp_path, "4bit")
    before = trained_weights(made)
    made.train()
    assert not [n for n, w in trained_weights(made).items() if torch.equal(w, before[n])]
    export.export(made, model, tmp_path / "export")  # refuses a model that isn't what was trained
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "export/model")
