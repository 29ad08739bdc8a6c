"""What can't be with an adapter, found without importing PEFT. Messages name the key."""

from __future__ import annotations

from typing import Any

from lib.config import trl_fields
from lib.config.adapters import ADAPTERS, virtual_tokens
from lib.config.job import Job


def problems(job: Job) -> list[str]:
    """Returns what is wrong with model.peft and with settings that don't go with model.adapter."""
    m, out = job.model, []
    if m.adapter == "none":
        return (
            ["model.peft: is set, but model.adapter is none. Set model.adapter: lora, or another adapter."]
            if m.peft
            else []
        )
    chosen = ADAPTERS[m.adapter]
    for key in sorted(m.peft.keys() & chosen.sets.keys()):
        out.append(f"model.peft.{key}: can't be set: it follows from model.adapter: {m.adapter}.")
    out += [f"model.peft.{key}: {chosen.ignored[key]}" for key in sorted(m.peft.keys() & chosen.ignored.keys())]
    if chosen.soft or chosen.own:
        out += _only_sft(job)
    if m.adapter == "prefix":
        out += _prefix(job)
    if chosen.soft:
        out += _soft(job)
    return out + _reference(job) + (_adalora(job) if m.adapter == "adalora" else [])


def steps(job: Job, rows: int | None) -> list[str]:
    """Returns the problem if an adapter's schedule doesn't fit the job's steps. rows: examples of an epoch; None: not known."""
    taken = job.train.get("max_steps", -1)
    if taken <= 0 and rows:
        taken = max(1, int(job.train.get("num_train_epochs", 3.0) * -(-rows // job.scale.global_batch)))
    if job.model.adapter != "adalora" or taken <= 0:
        return []
    found = schedule(trl_fields.filled(ADAPTERS["adalora"].config, job.model.peft), taken)
    return [found] if found else []


def schedule(peft: Any, taken: int) -> str | None:
    """Returns what is wrong with AdaLoRA's schedule in a job of `taken` steps; None if nothing is. peft: has AdaLoraConfig's fields."""
    if peft.tinit + peft.tfinal < taken:
        return None
    return (
        f"model.peft.tinit and model.peft.tfinal: {peft.tinit} steps before ranks are allocated and {peft.tfinal} after it leave none of the "
        f"job's {taken}. Lower them, or train for more steps."
    )


KEPT = (True, False, "gaussian", "orthogonal")
"""Values of PEFT's init_lora_weights that leave the base's weights as they are."""


def _reference(job: Job) -> list[str]:
    """Returns what makes the base without the adapter another model than model.base, if it is the reference model."""
    m, peft = job.model, {**ADAPTERS[job.model.adapter].sets, **job.model.peft}
    if job.stage not in ("dpo", "kto", "ppo") and not (job.stage == "grpo" and job.train.get("beta")):
        return []
    why = "the base's weights, and the base without the adapter is the reference model"
    if m.adapter == "pissa":
        return [f"model.adapter: pissa changes {why}. Use lora."]
    out = []
    if (start := peft.get("init_lora_weights", True)) not in KEPT:
        out.append(f"model.peft.init_lora_weights: {start} changes {why}. Leave it out.")
    if peft.get("bias", "none") != "none":
        out.append(f"model.peft.bias: {peft['bias']} trains some of {why}. Leave it out.")
    return out


def _only_sft(job: Job) -> list[str]:
    name, out = job.model.adapter, []
    if job.stage != "sft":
        out.append(f"model.adapter: {name} trains with jobs/sft.py only, not with jobs/{job.stage}.py. Use lora.")
    if job.scale.strategy != "ddp":
        out.append(f"scale.strategy: {name} trains with strategy: ddp, not {job.scale.strategy}.")
    return out


def _soft(job: Job) -> list[str]:
    name, t, out = job.model.adapter, job.train, []
    for key in ("packing", "padding_free"):
        if t.get(key):
            out.append(f"train.{key}: {name} needs each row by itself, with the prompt in front. Leave it out.")
    if t.get("label_smoothing_factor"):
        out.append(
            f"train.label_smoothing_factor: isn't worked out with {name}, whose rows are longer than their labels. Leave it out."
        )
    peft = trl_fields.filled(ADAPTERS[name].config, job.model.peft)
    for key in ("encoder_num_layers", "encoder_dropout"):
        if key in job.model.peft and peft.encoder_reparameterization_type != "LSTM":
            out.append(f"model.peft.{key}: is one of encoder_reparameterization_type: LSTM. Leave it out, or set that.")
    for key in ("prompt_tuning_init_text", "tokenizer_kwargs"):
        if key in job.model.peft and peft.prompt_tuning_init != "TEXT":
            out.append(f"model.peft.{key}: is one of prompt_tuning_init: TEXT. Leave it out, or set that.")
    number, most = virtual_tokens(job.model), t.get("max_length", 1024)
    if most and number > most - 2:
        out.append(
            f"model.peft.num_virtual_tokens: {number} leave no room for a row in train.max_length {most}. Lower it."
        )
    return out


def _prefix(job: Job) -> list[str]:
    kernel, out = job.model.attn_implementation, []
    if kernel not in (None, "sdpa", "eager"):
        out.append(f"model.attn_implementation: prefix computes attention with sdpa, not {kernel}. Leave it out.")
    if "encoder_hidden_size" in job.model.peft and not job.model.peft.get("prefix_projection"):
        out.append("model.peft.encoder_hidden_size: is one of prefix_projection: true. Leave it out, or set that.")
    return out


def _adalora(job: Job) -> list[str]:
    out = []
    if job.scale.strategy != "ddp":
        out.append(
            f"scale.strategy: adalora compares whole weights, which {job.scale.strategy} shards. Use strategy: ddp."
        )
    if job.train.get("max_grad_norm") == 0:
        out.append(
            "train.max_grad_norm: 0: adalora needs gradients without fp16's scale, which clipping removes. Leave it out."
        )
    peft = trl_fields.filled(ADAPTERS["adalora"].config, job.model.peft)
    if peft.init_r <= peft.target_r:
        out.append(
            f"model.peft.init_r: {peft.init_r} must be above target_r, {peft.target_r}: AdaLoRA takes rank away while it trains."
        )
    return out
