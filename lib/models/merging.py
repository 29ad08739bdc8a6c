"""Merges a trained adapter into its base. Adapters that can't be merged are refused before training, and the merged model is compared
with the trained one.

A base may have tied embeddings: input and output embeddings are one tensor. Merging an adapter of the input embeddings into that
tensor would change the output layer too. Such a base is untied first: model/ then has a separate output layer.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from lib.models import unmerged
from lib.runtime.failure import StopTraining

PROBE = 64
"""Tokens of the row on which the two models are compared."""
NEAR = {"float32": (1e-3, 1e-3), "less": (0.05, 0.5)}
"""Largest accepted difference, by arithmetic: (mean KL divergence in nats per token, difference of a reward, relative to the reward if
that is above 1). In float32 only the order of sums differs. bfloat16 rounds the merged weights; the error of a reward grows with the
size of its head. A wrong merge is off by whole nats."""


def check(model) -> None:
    """Raises ValueError, naming the key of PEFT's config, if the adapter of a PEFT model can't be trained or merged.

    The model may be without its weights (torch's meta device). One without an adapter of PEFT's is right.
    """
    if not hasattr(model, "peft_config"):
        return
    from peft.tuners.lora import LoraLayer
    from peft.utils import AuxiliaryTrainingWrapper

    config = model.peft_config[model.active_adapter]
    head = model.get_output_embeddings() if config.task_type == "CAUSAL_LM" else None
    if isinstance(head, AuxiliaryTrainingWrapper) and getattr(config, "trainable_token_indices", None):
        raise ValueError(
            "TRL's trainers read the output layer's own weights, and trainable_token_indices are also in it (the base's embeddings are "
            "tied, or lm_head is named). Use modules_to_save: [embed_tokens], which trains all tokens."
        )
    if config.peft_type == "LN_TUNING" and any(isinstance(m, AuxiliaryTrainingWrapper) for m in model.modules()):
        raise ValueError(
            "PEFT doesn't merge modules_to_save, one of which is a reward model's new head, with ln_tuning. Use another model.adapter."
        )
    if getattr(config, "layer_replication", None):
        raise ValueError("layers that share their weights (layer_replication) can't be merged and saved. Leave it out.")
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and any(layer.lora_bias.values()) and layer.get_base_layer().bias is None:
            raise ValueError(
                f"{name.rsplit('.', 1)[-1]} has no bias that lora_bias could be merged into. Leave it out."
            )


def probe(trainer):
    """Returns token ids (1, T): the start of a training row."""
    import torch

    row = trainer.train_dataset[0]
    if "input_ids" in row:
        return torch.tensor([list(row["input_ids"])[:PROBE]])
    answer = row.get("chosen_ids") or row.get("completion_ids")
    if answer:
        ids = [*(row.get("prompt_ids") or []), *answer]
    else:  # a prompt that the model answers while it trains
        ids = trainer.processing_class.apply_chat_template(row["prompt"], tokenize=True, return_dict=True)["input_ids"]
    return torch.tensor([ids[:PROBE]])


def answers(model, ids_1T):
    """Returns the model's log probabilities (T, V), or its reward (1,), on `ids_1T`; float32 on the CPU. Every rank must call it if
    the model is sharded."""
    import torch

    model.eval()
    with torch.no_grad():
        logits = model(input_ids=ids_1T.to(next(model.parameters()).device), use_cache=False).logits[0].float().cpu()
    return logits if logits.shape[-1] == 1 else logits.log_softmax(-1)


def merge(base, adapter: Path, target: Path):
    """Writes `base` (a loaded model) with the adapter merged into it to `target`."""
    import torch
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    with warnings.catch_warnings():
        # AdaLoRA's name triplets, not LoRA's layers.
        warnings.filterwarnings("ignore", "The following rank_pattern keys")
        model = PeftModel.from_pretrained(base, str(adapter))
    head, inputs = base.get_output_embeddings(), base.get_input_embeddings()
    if head is not None and isinstance(inputs, BaseTunerLayer) and head.weight is inputs.get_base_layer().weight:
        head.weight = torch.nn.Parameter(
            head.weight.detach().clone(), requires_grad=False
        )  # PEFT then saves it as untied
    model.merge_and_unload().save_pretrained(str(target))


def hold(trained, target: Path, kind, ids_1T, exact: bool) -> None:
    """Raises StopTraining if the outputs of the model of class `kind` in folder `target` differ from those of the trained model.

    trained: answers() of the trained model on ids_1T; exact: whether everything was in float32.
    """
    refuse_apart(trained, answers(unmerged.load(kind, str(target)), ids_1T), exact)


def refuse_apart(trained, merged, exact: bool) -> None:
    """Raises StopTraining if answers() of the trained and the exported model are further apart than rounding explains."""
    far = apart(trained, merged)
    reward = merged.shape[-1] == 1
    if not far <= (near := NEAR["float32" if exact else "less"][reward]):
        what = "the reward differs by" if reward else "nats a token apart:"
        raise StopTraining(
            f"model.adapter: the finished model isn't what was trained ({what} {far:.3g}, {near:g} at most). Nothing is published; the last "
            "checkpoint holds the adapter. Train other target_modules of model.peft, or model.adapter: none."
        )


def apart(trained, said) -> float:
    """Returns the mean KL divergence in nats of two log probabilities (T, V); of two rewards, their difference, divided by
    `trained` if that is above 1."""
    if said.shape[-1] == 1:
        return ((trained - said).abs() / trained.abs().clamp(min=1)).max().item()
    return (trained.exp() * (trained - said)).sum(-1).mean().item()
