"""The policy: the model under training, as transformers and PEFT load it."""

from __future__ import annotations

from typing import Any

from lib.config.job import Model
from lib.models import load


def policy(model: Model, args: Any) -> tuple[Any, Any]:
    """Returns (the base with a new adapter, if the job has one; its tokenizer). args: with the fields of TrainingArguments that
    lib/models/load.py reads."""
    from peft import get_peft_model
    from transformers import set_seed

    init, shared = dict(args.model_init_kwargs or {}), load.for_trainer(model, args)
    if "quantization_config" in shared:
        init["quantization_config"] = shared["quantization_config"]
    made = load.auto("causal_lm").from_pretrained(shared["model"], **init)
    if "peft_config" in shared:
        set_seed(args.seed)  # an adapter starts from random weights
        if args.gradient_checkpointing:
            made.enable_input_require_grads()
        made = get_peft_model(made, shared["peft_config"])
    return made, shared["processing_class"]
