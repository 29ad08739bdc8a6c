"""From `model:` in a job's YAML to what TRL's trainers take: weights, dtype, tokenizer and chat template."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from lib.config.adapters import ADAPTERS, virtual_tokens
from lib.config.job import Model
from lib.models import soft_prompt
from lib.models.chat_template import template_sha256
from lib.models.locate import path
from lib.run import Run
from lib.runtime.hardware import DTYPES

AUTO = {
    "causal_lm": "AutoModelForCausalLM", "reward": "AutoModelForSequenceClassification", "masked_lm": "AutoModelForMaskedLM",
    "seq2seq_lm": "AutoModelForSeq2SeqLM", "discriminator": "AutoModelForPreTraining", "encoder": "AutoModel",
    "classifier": "AutoModelForSequenceClassification", "adapter": "AutoModelForCausalLM",
}  # fmt: skip
"""{kind of model: the class of transformers that loads it}"""

TASK_TYPES = {"causal_lm": "CAUSAL_LM", "reward": "SEQ_CLS", "classifier": "SEQ_CLS"}
"""{kind of model that a stage makes: PEFT's task_type}"""


def dtype(model: Model, precision: str) -> str:
    """Returns the dtype of the weights. By default float32 if all of them train (bf16's 8-bit significand would lose small
    updates), else the dtype of `precision`."""
    if model.dtype != "auto":
        return model.dtype
    return DTYPES[precision] if model.adapter != "none" else "float32"


def init_kwargs(model: Model, precision: str, gpu: bool) -> dict:
    """Returns TRL's `model_init_kwargs`, with which from_pretrained loads the base."""
    kwargs = {"dtype": dtype(model, precision)}
    kwargs["attn_implementation"] = model.attn_implementation or ("sdpa" if gpu else "eager")
    if model.revision:
        kwargs["revision"] = model.revision
    if model.quantization != "none" and not gpu:
        kwargs["device_map"] = {"": "cpu"}
    return kwargs


def for_trainer(model: Model, args, makes: str = "causal_lm") -> dict:
    """Returns the keyword arguments that all TRL trainers share: model, processing_class, and peft_config and
    quantization_config if the job uses them.

    makes: the kind of model that the stage makes. With a reward model's task type PEFT also trains the new head, which
    would otherwise keep its random initial weights. args.max_length is lowered by the virtual tokens of a soft prompt.
    """
    base = path(model.base)
    kwargs = {"model": base, "processing_class": tokenizer(model)}
    if model.adapter != "none" and ADAPTERS[model.adapter].own:
        kwargs["model"] = _added(model, base, args, makes)
    elif model.adapter != "none":
        kwargs["peft_config"] = peft_config(model.adapter, model.peft, makes, base)
    if (ahead := virtual_tokens(model)) and args.max_length:
        args.max_length -= ahead
    if model.quantization != "none":
        from transformers import BitsAndBytesConfig

        compute = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
        four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": compute}
        kwargs["quantization_config"] = (
            BitsAndBytesConfig(load_in_4bit=True, **four)
            if model.quantization == "4bit"
            else BitsAndBytesConfig(load_in_8bit=True)
        )
    return kwargs


def _added(model: Model, base: str, args: Any, makes: str) -> Any:
    """Returns the base with an adapter of our own. Clears args.model_init_kwargs, since TRL applies them only to a model that it loads
    by name."""
    from lib.models import added

    init, args.model_init_kwargs = args.model_init_kwargs or {}, None
    config = peft_config(model.adapter, model.peft, makes)
    made = added.install(auto(makes).from_pretrained(base, **init), model.adapter, config, args.seed)
    if args.gradient_checkpointing:
        made.enable_input_require_grads()
    return made


def peft_config(adapter: str, given: dict, makes: str, base: str | None = None) -> Any:
    """Returns the config of an adapter, for a stage that makes `makes`. given: model.peft; base: path of the base; None: the config is
    for a model without weights, and a prompt's initial text isn't looked at."""
    module, name = ADAPTERS[adapter].config.split(":")
    task: dict[str, Any] = {} if ADAPTERS[adapter].own else {"task_type": TASK_TYPES[makes]}
    if adapter == "adalora":
        task["total_step"] = 10**9  # lib/models/adalora.py sets it once the trainer knows it
    if adapter == "prompt" and given.get("prompt_tuning_init") == "TEXT":
        task["tokenizer_name_or_path"] = base or "none"
    chosen = ADAPTERS[adapter]
    return getattr(importlib.import_module(module), name)(**task | chosen.sets | chosen.defaults | given)


def without_weights(peft: Any) -> None:
    """Changes PEFT's config for a model on torch's meta device: initialisations that need weights are left out."""
    for key, plain in (("init_lora_weights", False), ("init_weights", False), ("prompt_tuning_init", "RANDOM")):
        if hasattr(peft, key):
            setattr(peft, key, plain)


def auto(makes: str) -> Any:
    """Returns the class of transformers that loads a kind of model."""
    return getattr(importlib.import_module("transformers"), AUTO[makes])


def train_in_fp32(model) -> None:
    """Casts an adapter's trainable weights to float32. The optimizer needs it for small updates, and the gradient scaler
    used on a T4 requires it. PEFT leaves a new head in the base's dtype, and TRL makes a QLoRA adapter bfloat16."""
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()


def prepare_adapter(trainer, adapter: str) -> None:
    """Makes a trainer's new adapter ready to train."""
    train_in_fp32(trainer.model)
    if adapter == "adalora":
        from lib.models.adalora import AdaLora

        trainer.add_callback(AdaLora(trainer.model))
    if ADAPTERS[adapter].soft:
        soft_prompt.keep_whole(trainer.model)


def tokenizer(model: Model):
    """Loads the base's tokenizer with the job's chat template. Raises ValueError if the base is a run that was trained with
    another template."""
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(path(model.base), revision=model.revision)
    parent = parent_template(model.base)
    if model.chat_template:
        tok.chat_template = Path(model.chat_template).read_text(encoding="utf-8")
    if parent and template_sha256(tok) != parent:
        raise ValueError(
            f"model.chat_template: {model.base} was trained with template {parent[:12]}, but this job would use "
            f"{template_sha256(tok)[:12]}. Leave model.chat_template out to keep the run's own."
        )
    if tok.pad_token is None:
        tok.pad_token = tok.eos_token
    return tok


def parent_template(base: str) -> str | None:
    """Returns the SHA-256 of the chat template that a parent run was trained with; None if the base isn't a run."""
    is_run = base.startswith("s3://") or (Path(base).is_dir() and Run(base).is_run())
    return Run(base).provenance().get("template_sha256") if is_run else None


def template_text(model: Model) -> str | None:
    """Returns the chat template that the job will use; None if it can't be read without downloading the model."""
    if model.chat_template:
        return Path(model.chat_template).read_text(encoding="utf-8")
    folder = Path(model.base) / ("model" if (Path(model.base) / "job.yaml").is_file() else "")
    file = folder / "chat_template.jinja"
    return file.read_text(encoding="utf-8") if file.is_file() else None
