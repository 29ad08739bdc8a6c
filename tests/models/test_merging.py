"""An exported model gives the same outputs as the adapter and its base at the end of training, whatever kind of base it is."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lib.config.job import Model
from lib.models import export, merging
from lib.runtime.failure import StopTraining
from tests.models.adapted import adapted

Q = {"r": 4, "target_modules": ["q_proj"]}
EMBED = {"r": 4, "target_modules": ["q_proj", "embed_tokens"]}


def exported(
    stage: str, base: str, source: str, folder: Path, lora: dict, quantization: str = "none", before=lambda: None
):
    """Returns (trainer after a large step, folder with model/ and adapter/). before: called between the two."""
    model = Model(base, adapter="lora", peft=lora, quantization=quantization)
    train = {"max_steps": 1, "learning_rate": 0.05, "save_strategy": "no"}
    trainer = adapted(stage, model, source, folder, train)
    trainer.train()
    before()
    export.export(trainer, model, folder / "export")
    return trainer, folder / "export"


@pytest.mark.parametrize(
    "lora",
    [
        EMBED,
        EMBED | {"use_dora": True},
        Q | {"modules_to_save": ["embed_tokens"]},
        Q | {"modules_to_save": ["lm_head"]},
        Q | {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        Q | {"use_dora": True, "bias": "all", "init_lora_weights": "pissa"},
    ],
    ids=str,
)
@pytest.mark.slow
def test_the_exported_model_has_the_loss_that_was_trained(lora, tiny_model, chats_file, tmp_path):
    """The base's embeddings are tied."""
    trainer, folder = exported("sft", tiny_model, chats_file, tmp_path, lora)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    trainer.model.eval()
    with torch.no_grad():
        trained = trainer.compute_loss(trainer.model, dict(batch)).item()
        said = AutoModelForCausalLM.from_pretrained(folder / "model")(**batch).loss.item()
        base = AutoModelForCausalLM.from_pretrained(tiny_model)(**batch).loss.item()
    assert said == pytest.approx(trained, abs=1e-5) and abs(said - base) > 1e-3


def test_a_reward_model_gives_the_rewards_that_were_trained(tiny_model, pairs_file, tmp_path):
    trainer, folder = exported("reward", tiny_model, pairs_file, tmp_path, EMBED)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    trainer.model.eval()
    asked = {k: batch[k] for k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        trained = trainer.model(**asked).logits
        said = AutoModelForSequenceClassification.from_pretrained(folder / "model")(**asked).logits
    assert torch.allclose(said, trained, atol=1e-5)


def test_a_quantised_base_is_merged_unquantised(tiny_model, chats_file, tmp_path):
    from peft import PeftModel

    trainer, folder = exported("sft", tiny_model, chats_file, tmp_path, EMBED, "4bit")
    ids = merging.probe(trainer)
    beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(folder / "adapter"))
    said = merging.answers(AutoModelForCausalLM.from_pretrained(folder / "model"), ids)
    assert torch.allclose(merging.answers(beside, ids), said, atol=1e-4)


def test_the_base_is_loaded_whole_where_zero3_trained(tiny_model, chats_file, tmp_path):
    """Only the first rank loads it. While transformers has DeepSpeed's configuration, every rank would have to."""
    pytest.importorskip("deepspeed")
    from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

    kept = []  # transformers holds a weak reference
    zero3 = {"zero_optimization": {"stage": 3}, "train_batch_size": 4}
    _, folder = exported(
        "sft", tiny_model, chats_file, tmp_path, Q, before=lambda: kept.append(HfDeepSpeedConfig(zero3))
    )
    assert (folder / "model" / "model.safetensors").is_file() and not is_deepspeed_zero3_enabled()


def test_a_model_that_is_not_what_was_trained_is_not_published(tiny_model, tmp_path):
    """Both kinds of model, each with one weight that the merge would lose."""
    for kind in (AutoModelForCausalLM, AutoModelForSequenceClassification):
        model, ids = (
            kind.from_pretrained(tiny_model, **({} if kind is AutoModelForCausalLM else {"num_labels": 1})),
            torch.arange(40)[None],
        )
        trained, target = merging.answers(model, ids), tmp_path / kind.__name__
        model.save_pretrained(target)
        merging.hold(trained, target, kind, ids, exact=True)
        model.model.layers[0].self_attn.v_proj.weight.data.mul_(3)
        model.save_pretrained(target)
        with pytest.raises(StopTraining, match="the finished model isn't what was trained"):
            merging.hold(trained, target, kind, ids, exact=True)
        shutil.rmtree(target)
