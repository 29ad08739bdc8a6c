"""A trained adapter becomes part of its base's weights: what can't is refused before training, and what was written is held against
what was trained.

The base may be tied: its input and output embeddings are one tensor. An adapter on the input embeddings reads that tensor once more
than it writes to it, so merging into the tensor itself would change the output layer too. Such a base
is untied first: model/ then has an output layer of its own.
"""

from __future__ import annotations

from pathlib import Path

from lib.failure import StopTraining

PROBE = 64
"""Tokens of the row on which the two models are compared."""
NEAR = {"float32": (1e-3, 1e-3), "less": (0.05, 0.5)}
"""How far apart they may be, by the arithmetic: mean KL divergence in nats a token, and the difference of a reward (by its size, where
that is above 1). In float32 only the order of sums differs; bfloat16 rounds the merged weights, and a reward as much as its head is
large. What is merged wrongly is whole nats off."""


def check(model) -> None:
    """Raises ValueError that names the key of LoraConfig where the adapter of a PEFT model can't be trained or merged.

    The model may be without its weights (torch's meta device).
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils import AuxiliaryTrainingWrapper

    config = model.peft_config[model.active_adapter]
    head = model.get_output_embeddings() if config.task_type == "CAUSAL_LM" else None
    if isinstance(head, AuxiliaryTrainingWrapper) and config.trainable_token_indices:
        raise ValueError(
            "TRL's trainers read the output layer's own weights, and trainable_token_indices are also in it (the base's embeddings are "
            "tied, or lm_head is named). Use modules_to_save: [embed_tokens], which trains all tokens."
        )
    if config.layer_replication:
        raise ValueError("layers that share their weights (layer_replication) can't be merged and saved. Leave it out.")
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and any(layer.lora_bias.values()) and layer.get_base_layer().bias is None:
            raise ValueError(
                f"{name.rsplit('.', 1)[-1]} has no bias that lora_bias could be merged into. Leave it out."
            )


def probe(trainer):
    """(1, T) token ids: the start of a training row."""
    import torch

    row = trainer.train_dataset[0]
    prompt = row.get("prompt_ids") or []
    ids = row.get("input_ids") or [*prompt, *(row.get("chosen_ids") or row["completion_ids"])]
    return torch.tensor([list(ids)[:PROBE]])


def answers(model, ids_1T):
    """What a model says on `ids_1T`, (T, V) log-probabilities or (1,) a reward; float32 on the CPU. Sharded: every rank calls it."""
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

    model = PeftModel.from_pretrained(base, str(adapter))
    head, inputs = base.get_output_embeddings(), base.get_input_embeddings()
    if head is not None and isinstance(inputs, BaseTunerLayer) and head.weight is inputs.get_base_layer().weight:
        head.weight = torch.nn.Parameter(
            head.weight.detach().clone(), requires_grad=False
        )  # PEFT then saves it as untied
    model.merge_and_unload().save_pretrained(str(target))


def hold(trained, target: Path, kind, ids_1T, exact: bool) -> None:
    """Raises StopTraining where the model of class `kind` in folder `target` doesn't say what was trained.

    trained: answers() of that on ids_1T; exact: whether all was in float32.
    """
    said = answers(kind.from_pretrained(str(target)), ids_1T)
    far = apart(trained, said)
    reward = said.shape[-1] == 1
    if not far <= (near := NEAR["float32" if exact else "less"][reward]):
        what = "the reward differs by" if reward else "nats a token apart:"
        raise StopTraining(
            f"model.lora: the merged model isn't what was trained ({what} {far:.3g}, {near:g} at most). Nothing is published; the last "
            "checkpoint holds the adapter. Train other target_modules, or model.adapter: none."
        )


def apart(trained, said) -> float:
    """Mean KL divergence of two (T, V) log-probabilities in nats; of two rewards, their difference by their size above 1."""
    if said.shape[-1] == 1:
        return ((trained - said).abs() / trained.abs().clamp(min=1)).max().item()
    return (trained.exp() * (trained - said)).sum(-1).mean().item()
